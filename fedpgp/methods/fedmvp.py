"""FedMVP: image prompts made from the image and from descriptions of the classes (Singha et al.,
ICCV 2025, arXiv 2504.20860).

    E = descriptions' text features, frozen;  A = E W^T + b in the image tower's width
    x = MHA(LN(q(P)), LN(k(A)), v(A))         P: patch embeddings of the image
    p = pool(x + FF(x)) to m tokens           behind the patches, into the frozen tower
    y = mean over a class's descriptions of s cos(f(patches, p), E)
    L = CE(y) + 10 (1 - cos(f(patches, p), f(image)))      a coin a batch mirrors the images behind
                                                           the last f

In training A holds the client's own classes, in evaluation all classes. A client begins with q(x) =
k(x) = v(x) = x and trains W, b, attention and FF. Its first batch whose loss is below 0.5 changes
it for good: from then on q(x) = x + x A_q B_q, k and v likewise (rank 8), and it trains these and
W, b alone. Everything is shared but this change; the server takes the plain mean, and the global
model answers without the low-rank parts (``low_rank_answers=true``: with them). The paper's
descriptions come from a language model; here they are a set of templates. (Public code does not
run: it lacks a module.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.layers import (
    attention,
    attention_start,
    gated,
    gated_start,
    linear,
    linear_start,
    norm,
    norm_start,
)
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Batch,
    Images,
    LoadClientBatch,
    Method,
    Params,
    StepContext,
    cosine_logits,
    mask_other_classes,
    register,
)
from fedpgp.prompts import normal
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text.templates import SEVEN
from fedpgp.towers.image import ImageTower

POOLED = 4
"""m, image prompts of an image."""


@dataclass(frozen=True)
class FedMVPSettings:
    """Settings of FedMVP.

    Attributes:
        heads: of the attention.
        weight: of the distance from CLIP's image feature.
        rank: of the low-rank part.
        switch: loss of a batch below which a client goes over to the low-rank part, for good.
        low_rank_init: how B starts: ``zero``, or ``normal`` as in the public code.
        low_rank_answers: whether the global model's answers contain the low-rank part.
        loss_classes: classes in the loss: ``all``, or each client's ``own``.
    """

    heads: int = 4
    weight: float = 10.0
    rank: int = 8
    switch: float = 0.5
    low_rank_init: str = "zero"
    low_rank_answers: bool = False
    loss_classes: str = "all"

    def __post_init__(self):
        check_number("method.heads", self.heads, least=1, whole=True)
        check_number("method.weight", self.weight, least=0)
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.switch", self.switch, least=0)
        check_choice("method.low_rank_init", self.low_rank_init, ("zero", "normal"))
        check_choice("method.low_rank_answers", self.low_rank_answers, (False, True))
        check_choice("method.loss_classes", self.loss_classes, ("all", "own"))


@register("fedmvp")
class FedMVP(Method):
    """Shared: projection, attention, feed-forward, low-rank part. Personal: whether it has
    gone over to the last."""

    about = About(
        title="FedMVP",
        paper="Singha et al., ICCV 2025",
        family="federated_prompts",
        learns=("image prompts",),
        shared="image-prompt generator",
        personal="whether it has gone over to the low-rank part",
        sent="16*W*W + e*W + 20*W + 6*rank*W",
        passes="none",
        official=(
            "declared difference: mainaksingha01/FedMVP at 246800e reads descriptions of a "
            "language model; on our templates exact (run) with `method.loss_classes=own` "
            "`method.low_rank_init=normal`"
        ),
        model="tiny_vit",
        order=20,
    )
    Settings = FedMVPSettings
    no_class_embeddings = "its class embeddings are frozen; clients send what they do to images"
    inputs = ("pixels",)
    training_inputs = ("features", "mirrored")
    buffers = ("client_classes", "switched")
    precomputes_for_evaluation = False
    equal_weights = True

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    def init_shared(self, rng: np.random.Generator) -> Params:
        width = self.tower.width
        if width % self.settings.heads:
            raise FedPGPError(
                f"method.heads={self.settings.heads} does not divide the image tower's width "
                f"{width}"
            )
        params = {
            **linear_start("project", width, self.task.clip.embed, rng),
            **norm_start("norm_q", width),
            **norm_start("norm_k", width),
            **attention_start("attention", width, width, rng),
            **gated_start("ff", width, rng),
        }
        for part in ("q", "k", "v"):
            params[f"lora.{part}.A"] = normal((width, self.settings.rank), rng)
            b = normal((self.settings.rank, width), rng)
            params[f"lora.{part}.B"] = (
                b if self.settings.low_rank_init == "normal" else torch.zeros_like(b)
            )
        return params

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"switched": torch.zeros(1)}

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        return {"client_classes": load_batch(images=False).seen(len(classes.ids))}

    def why_not_per_image(self) -> str:
        return (
            "method=fedmvp: it reads which classes a client has images of, and goes over to its "
            "low-rank part by a batch's loss, both without noise"
        )

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images)

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        loss, grads = super().gradients(params, batch, classes, step)
        params["switched"].masked_fill_((loss < self.settings.switch).unsqueeze(-1), 1)
        return loss, grads

    def rates(self, params: Params, step: StepContext) -> Params:
        """What a client does not train stays as it is: the low-rank part before it has gone over,
        attention and FF from then on."""
        trained = {"project": None, "lora": params["switched"]}
        factors = {
            name: trained.get(name.split(".")[0], 1 - params["switched"])
            for name in self.trainable(params)
        }
        return {
            n: f.view(-1, *[1] * (params[n].dim() - 1)) for n, f in factors.items() if f is not None
        }

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        classifier, client_classes = (
            self.global_classifier(params, classes),
            params["client_classes"] > 0,
        )
        x = self.prompted_images(
            classifier, batch.images, params["switched"], client_classes.repeat(1, len(SEVEN))
        )
        logits = cosine_logits(classifier["texts"], x, self.task.logit_scale)
        if self.settings.loss_classes == "own":
            logits = mask_other_classes(logits, client_classes)
        mirror = [
            generator(step.seed, self.name, c, step.server_round, step.step).random() < 0.5
            for c in step.clients
        ]
        mirror = torch.tensor(mirror, device=x.device).view(-1, 1, 1)
        known = torch.where(mirror, batch.images.mirrored, batch.images.features)
        apart = ((1 - (x * known).sum(-1)) * batch.weights).sum(-1)
        return cross_entropy(logits, batch.labels, batch.weights) + self.settings.weight * apart

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        described = torch.stack([classes.features_of(template) for template in SEVEN])  # (D, C, e)
        clients = len(shared["project.bias"])
        return {
            **shared,
            "texts": described.mean(0).expand(clients, -1, -1),
            "described": described.flatten(0, 1).expand(clients, -1, -1),
        }

    def prompted_images(
        self,
        classifier: Params,
        images: Images,
        low_rank: Tensor | None = None,
        among: Tensor | None = None,
    ) -> Tensor:
        """(K, B, e), unit norm.

        Args:
            low_rank: (K, 1), factor on the low-rank parts; None leaves them out.
            among: (K, D C), True for the descriptions that may be attended to; None: all.
        """
        x = self.tower.embed(images.pixels)  # (K, B, tokens, W)
        described = linear(classifier, "project", classifier["described"])

        def changed(part: str, x: Tensor) -> Tensor:
            if low_rank is None:
                return x
            return x + low_rank.unsqueeze(-1) * (
                x @ classifier[f"lora.{part}.A"] @ classifier[f"lora.{part}.B"]
            )

        queries = norm(classifier, "norm_q", changed("q", x[:, :, 1:].flatten(1, 2)))
        keys, values = norm(classifier, "norm_k", changed("k", described)), changed("v", described)
        mixed = attention(
            classifier, "attention", queries, keys, self.settings.heads, among, values
        )
        mixed = (mixed + gated(classifier, "ff", mixed)).view_as(x[:, :, 1:])
        tokens = mixed.flatten(0, 1).transpose(1, 2)
        pooled = torch.nn.functional.adaptive_avg_pool1d(tokens, POOLED).transpose(1, 2)
        return self.tower.encode(torch.cat([x, pooled.view(*x.shape[:2], POOLED, -1)], dim=2))

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        low_rank = (
            torch.ones_like(classifier["project.bias"][:, :1])
            if self.settings.low_rank_answers
            else None
        )
        return cosine_logits(
            classifier["texts"],
            self.prompted_images(classifier, images, low_rank),
            self.task.logit_scale,
        )

    def step_work(self, size: StepSize) -> Work:
        width, patches = self.tower.width, size.images * (self.tower.tokens - 1)
        described = len(SEVEN) * len(size.classes.names)
        keys = size.layer(described, self.task.clip.embed, width, 2)
        keys += size.layer(described, width, 2 * width)
        reader = size.layer(patches, width, 14 * width + 2 * described)
        return size.through_image_tower(POOLED) + keys + reader
