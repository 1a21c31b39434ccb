"""FedMVP: image prompts made from the picture and from descriptions of the classes (Singha et al., ICCV 2025, arXiv
2504.20860).

    E = descriptions' text features, frozen;  A = E W^T + b in the image tower's width
    x = MHA(LN(P), LN(A), A)                  P: patch embeddings of the picture
    v = pool(x + FF(x)) to m tokens           behind the patches, into the frozen tower
    y = mean over a class's descriptions of s cos(f(patches, v), E)
    L = CE(y) + 10 (1 - cos(f(patches, v), f(mirrored picture)))

Queries, keys and values pass x + x A_q B_q (rank 8, B = 0 at the start). A step of a client whose loss is below 0.5
trains these alone, any other step all the rest. Everything is shared; the server takes the plain mean. The paper's
descriptions come from a language model; here they are a set of templates. (Public code does not run.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.image_tower import ImageTower
from fedpgp.layers import attention, attention_start, gated, gated_start, linear, linear_start, norm, norm_start
from fedpgp.losses import cross_entropy
from fedpgp.methods.base import Batch, Images, Method, Params, Step, cosine_logits
from fedpgp.methods.promptsrc import TEMPLATES
from fedpgp.prompts import normal
from fedpgp.task import Candidates

POOLED = 4
"""m, image prompts of a picture."""


@dataclass(frozen=True)
class FedMVPSettings:
    """Settings of FedMVP.

    Attributes:
        heads: of the attention.
        weight: of the distance from CLIP's image feature.
        rank: of the low-rank part.
        switch: loss below which a step trains the low-rank part alone.
    """

    heads: int = 4
    weight: float = 10.0
    rank: int = 8
    switch: float = 0.5

    def __post_init__(self):
        check_number("method.heads", self.heads, least=1, whole=True)
        check_number("method.weight", self.weight, least=0)
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.switch", self.switch, least=0)


class FedMVP(Method):
    """Shared: projection, attention, feed-forward, low-rank part. Nothing personal."""

    name = "fedmvp"
    Settings = FedMVPSettings
    reads = ("pixels",)
    reads_in_training = ("mirrored",)
    equal_weights = True

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    def init_shared(self, rng: np.random.Generator) -> Params:
        width = self.tower.width
        if width % self.settings.heads:
            raise FedPGPError(f"method.heads={self.settings.heads} does not divide the image tower's width {width}")
        params = {
            **linear_start("project", width, self.task.clip.embed, rng),
            **norm_start("norm_q", width),
            **norm_start("norm_k", width),
            **attention_start("attention", width, width, rng),
            **gated_start("ff", width, rng),
        }
        for part in ("q", "k", "v"):
            params[f"lora.{part}.A"] = normal((width, self.settings.rank), rng)
            params[f"lora.{part}.B"] = torch.zeros(self.settings.rank, width)
        return params

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return images * self.tower.tokens * self.tower.width * self.tower.depth

    def gradients(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> tuple[Tensor, Params]:
        loss, grads = super().gradients(params, batch, classes, step)
        low = loss < self.settings.switch

        def masked(name: str, grad: Tensor) -> Tensor:
            trained = low if name.startswith("lora.") else ~low
            return grad * trained.view(-1, *[1] * (grad.dim() - 1))

        return loss, {name: masked(name, grad) for name, grad in grads.items()}

    def loss(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> Tensor:
        features = self.global_features(params, classes)
        x = self.pictures(features, batch.images)
        logits = cosine_logits(features["texts"], x, self.task.logit_scale)
        apart = ((1 - (x * batch.images.mirrored).sum(-1)) * batch.weights).sum(-1)
        return cross_entropy(logits, batch.labels, batch.weights) + self.settings.weight * apart

    def global_features(self, shared: Params, classes: Candidates) -> Params:
        described = torch.stack([classes.described(template) for template in TEMPLATES])  # (D, C, e)
        clients = len(shared["project.bias"])
        return {
            **shared,
            "texts": described.mean(0).expand(clients, -1, -1),
            "described": described.flatten(0, 1).expand(clients, -1, -1),
        }

    def pictures(self, features: Params, images: Images) -> Tensor:
        """(K, B, embed), unit norm."""
        x = self.tower.embed(images.pixels)  # (K, B, tokens, W)
        described = linear(features, "project", features["described"])

        def low_rank(part: str, x: Tensor) -> Tensor:
            return x + x @ features[f"lora.{part}.A"] @ features[f"lora.{part}.B"]

        queries = low_rank("q", norm(features, "norm_q", x[:, :, 1:].flatten(1, 2)))
        keys = low_rank("k", norm(features, "norm_k", described))
        mixed = attention(features, "attention", queries, keys, self.settings.heads, values=low_rank("v", described))
        mixed = (mixed + gated(features, "ff", mixed)).view_as(x[:, :, 1:])
        tokens = mixed.flatten(0, 1).transpose(1, 2)
        pooled = torch.nn.functional.adaptive_avg_pool1d(tokens, POOLED).transpose(1, 2)
        return self.tower.encode(torch.cat([x, pooled.view(*x.shape[:2], POOLED, -1)], dim=2))

    def logits(self, features: Params, images: Images, classes: Candidates) -> Tensor:
        return cosine_logits(features["texts"], self.pictures(features, images), self.task.logit_scale)
