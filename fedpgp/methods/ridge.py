"""Ridge head: linear regression of the classes on the features, solved in closed form (AFL: He et
al., CVPR 2025, arXiv 2405.16240).

    client:  G_i = X^T X,  Q_i = X^T Y      X: features of its images (n, e), Y: classes, one-hot
    server:  W = (sum_i G_i + lambda I)^-1 sum_i Q_i
    answer:  the largest of x W; a class that nobody had images of stands there with its text

AFL's clients send W_i = (G_i + gamma I)^-1 Q_i and G_i + gamma I, and its absolute aggregation law
makes of them the W above, with lambda = clients x gamma. The sums are those of all images together,
however these are split over clients, rounds and tasks: the head forgets nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, register
from fedpgp.methods.prototype import Prototype
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class RidgeSettings:
    """Settings of the ridge head.

    Attributes:
        penalty: lambda, on the squared weights.
    """

    penalty: float = 1.0

    def __post_init__(self):
        check_number("method.penalty", self.penalty, above=0)


@register("ridge")
class Ridge(Prototype):
    """Shared: Q^T as ``sums`` (classes, e), ``counts`` (classes, 1) and G as ``gram`` (e, e), over
    all clients. Personal: the client's own, of the images it has now."""

    about = About(
        title="Ridge head",
        paper="AFL, He et al., CVPR 2025",
        family="lifelong",
        learns=("heads",),
        shared="Gram matrix of features, their sums and counts by class",
        personal="nothing private",
        sent="C*(e + 1) + e*e",
        passes="none",
        official=(
            "declared difference: ZHUANGHP/Analytic-federated-learning at 1e7c2d9 takes features "
            "that are not of unit norm; their solution, for lambda = clients x gamma"
        ),
        order=30,
    )
    Settings = RidgeSettings
    statistics = ("sums", "counts", "gram")
    buffers = (*Prototype.buffers, "gram", "sent.gram", "own.gram")
    delta_params = statistics
    sent_copies = ("sent.sums", "sent.counts", "sent.gram")
    no_class_embeddings = Prototype.no_class_embeddings

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {**super().shapes(), "gram": (self.task.clip.embed,) * 2}

    def count(self, batch: Batch, classes: ClassSet) -> Params:
        real = batch.images.features * batch.weights.sign().unsqueeze(-1)  # without padding
        return {**super().count(batch, classes), "gram": real.mT @ real}

    def head(self, shared: Params) -> Tensor:
        gram, sums = (shared[name].cpu().double() for name in ("gram", "sums"))
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
        solved = torch.linalg.solve(gram + self.settings.penalty * identity, sums.mT).mT
        return solved.to(shared["sums"])
