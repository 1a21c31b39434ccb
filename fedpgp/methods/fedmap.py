"""FedMAP: prompts in the image tower, anchored to fixed class texts and to how these lie to each
other (Wei et al., ICML 2026).

    a_c  frozen text anchor of class c, unit norm
    x    = f(image, v), unit norm                 v: deep image prompts, as VPT has them
    P_c <- normalised (0.9 P_c + 0.1 mean of the batch's x of class c); the first batch with the
           class replaces P_c
    L    = CE(s cos(x, a)) + lambda mean over images and seen classes c of (x P_c - a_y a_c)^2

P has no gradient, and a batch changes it before its loss is taken. The server averages P as it does
v, so that a client that never saw a class sends the anchor, or the average, it was sent; a class
that one client has seen counts as seen for all.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, cosine_logits, register
from fedpgp.methods.vpt import VPT
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text.templates import SEVEN


@dataclass(frozen=True)
class FedMAPSettings:
    """Settings of FedMAP.

    Attributes:
        tokens: prompts of a block.
        depth: blocks with prompts of their own.
        weight: lambda, of the structure loss.
        momentum: what remains of a prototype at a batch with its class.
        anchors: texts that are averaged to an anchor: ``seven`` templates of CLIP's authors, or the
            data set's ``template`` alone. The paper's are a language model's.
    """

    tokens: int = 1
    depth: int = 12
    weight: float = 10.0
    momentum: float = 0.9
    anchors: str = "seven"

    def __post_init__(self):
        check_number("method.tokens", self.tokens, least=1, whole=True)
        check_number("method.depth", self.depth, least=1, whole=True)
        check_number("method.weight", self.weight, least=0)
        check_number("method.momentum", self.momentum, least=0, below=1)
        check_choice("method.anchors", self.anchors, ("seven", "template"))


@register("fedmap")
class FedMAP(VPT):
    """Shared: v (depth, n, W), prototypes (classes, e) and which classes were seen (classes,)."""

    about = About(
        title="FedMAP",
        paper="Wei et al., ICML 2026",
        family="federated_prompts",
        shared="deep image prompts, and a mean image feature of each class",
        sent="depth*tokens*W + C*(e + 1)",
        passes="none",
        official=(
            "declared difference: YipanWei/FedMAP at 12e05f1 reads attributes of the classes that "
            "a language model wrote; on our templates exact (read)"
        ),
        model="tiny_vit",
    )
    Settings = FedMAPSettings
    buffers = ("prototypes", "seen")

    def why_not_per_image(self) -> str:
        return (
            "method=fedmap: it keeps moving means of image features, without noise. Take "
            "privacy=client"
        )

    def init_shared(self, rng: np.random.Generator) -> Params:
        names = self.task.class_names
        return {
            **super().init_shared(rng),
            "prototypes": self.anchors(self.task.class_set(range(len(names)))).clone(),
            "seen": torch.zeros(len(names)),
        }

    def anchors(self, classes: ClassSet) -> Tensor:
        """Return a, (C, e)."""
        if self.settings.anchors == "template":
            return classes.template_features
        return classes.ensemble(SEVEN)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        texts = self.anchors(classes)
        return {"v": shared["v"], "texts": texts.expand(len(shared["v"]), -1, -1)}

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        anchors = self.anchors(classes)
        x = self.tower(batch.images.pixels, params["v"])
        prototypes, seen = self._moved(params, x.detach(), batch, list(classes.ids))
        logits = cosine_logits(anchors.expand(len(x), -1, -1), x, self.task.logit_scale)
        apart = (x @ prototypes.mT - (anchors @ anchors.mT)[batch.labels]).square()  # (K, B, C)
        of_images = (apart * seen.unsqueeze(1)).sum(-1) / seen.sum(-1, keepdim=True)
        structure = (of_images * batch.weights).sum(-1)
        return cross_entropy(logits, batch.labels, batch.weights) + self.settings.weight * structure

    def _moved(
        self, params: Params, x: Tensor, batch: Batch, columns: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Move the prototypes, and mark the classes, of a batch in place; return those of the
        trained classes, (K, C, e) and (K, C)."""
        real = (batch.weights > 0).to(x.dtype).unsqueeze(-1)
        one_hot = F.one_hot(batch.labels, len(columns)).to(x.dtype) * real
        mean = F.normalize(one_hot.mT @ x, dim=-1)
        there = one_hot.sum(1) > 0
        old, seen = params["prototypes"][:, columns], params["seen"][:, columns] > 0
        moved = torch.lerp(mean, old, self.settings.momentum)
        new = F.normalize(torch.where(seen.unsqueeze(-1), moved, mean), dim=-1)
        prototypes = torch.where(there.unsqueeze(-1), new, old)
        seen = (seen | there).to(x.dtype)
        params["prototypes"][:, columns], params["seen"][:, columns] = prototypes, seen
        return prototypes, seen

    @classmethod
    def settings_of(cls, blocks: int):
        return cls.Settings(depth=min(12, blocks))

    def step_work(self, size: StepSize) -> Work:
        relations = size.layer(size.images, self.task.clip.embed, len(size.classes.names), times=2)
        return super().step_work(size) + relations
