"""FedPHA: a personal prompt pushed away from the shared one, and from its strong directions (Fang
et al., ICML 2025, PMLR 267).

    V2    = right singular vectors of p_G without the strongest (1 - ratio) m
    p_P   = p_L V2 V2^T
    z_L, z_G, z_P = g(p_L), g(p_G), g(p_P)
    L     = CE(z_L) + CE(z_G) + mean (z_L - z_P)^2 + mean_c relu(alpha - |z_L,c - z_G,c|)

p_G is averaged, p_L stays; prediction uses z_L alone. All clients have contexts of one length here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class FedPHASettings:
    """Settings of FedPHA.

    Attributes:
        ratio: fraction of p_G's singular directions that are kept, the weakest ones.
        alpha: distance up to which z_L is pushed away from z_G.
        through_svd: gradients reach p_G through V2 too, as in the public code. They are unbounded
            where singular values are close, and a phrase with one word twice has such ones, so they
            are left out by default.
    """

    ratio: float = 0.8
    alpha: float = 1.0
    through_svd: bool = False

    def __post_init__(self):
        check_number("method.ratio", self.ratio, least=0, most=1)
        check_number("method.alpha", self.alpha, least=0)
        check_choice("method.through_svd", self.through_svd, (False, True))


@register("fedpha")
class FedPHA(PromptFL):
    """Shared: p_G (m, d). Personal: p_L (m, d)."""

    about = About(
        title="FedPHA",
        paper="Fang et al., ICML 2025",
        family="federated_prompts",
        shared="context",
        personal="second context",
        sent="m*d",
        passes="3",
        official="exact (run) with `method.through_svd=true`: CYFang6/FedPHA at 1ab33df",
        order=14,
    )
    per_image = "shared"
    Settings = FedPHASettings

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {
            "p_L": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)
        }

    def contexts(self, training: bool) -> int:
        return 3

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        z_L, z_G, z_P = classes.encoder(self.task.n_ctx)(
            self._contexts(params["p_G"], params["p_L"])
        )
        local, shared = (
            cross_entropy(
                self.logits(classifier, batch.images, classes), batch.labels, batch.weights
            )
            for classifier in (z_L, z_G)
        )
        pull, push = self._between(z_L, z_G, z_P)
        return local + shared + pull + push

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        both = classes.encoder(self.task.n_ctx)(torch.stack([params["p_L"], params["p_G"]]))
        local, shared = (
            cross_entropy(self.logits(z, batch.images, classes), batch.labels, batch.weights)
            for z in both
        )
        return local + shared

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        contexts = self._contexts(params["p_G"], params["p_L"])
        return sum(self._between(*classes.encoder(self.task.n_ctx)(contexts)))

    def _contexts(self, p_G: Tensor, p_L: Tensor) -> Tensor:
        """p_L, p_G and p_P, (3, K, m, d)."""
        _, _, rows = torch.linalg.svd(
            p_G if self.settings.through_svd else p_G.detach(), full_matrices=False
        )
        weak = rows[:, int(p_G.shape[1] * (1 - self.settings.ratio)) :]
        return torch.stack([p_L, p_G, p_L @ weak.mT @ weak])

    def _between(self, z_L: Tensor, z_G: Tensor, z_P: Tensor) -> tuple[Tensor, Tensor]:
        """The pull towards z_P and the push from z_G, (K,) each."""
        pull = (z_L - z_P).square().mean((-2, -1))
        push = (self.settings.alpha - (z_L - z_G).norm(dim=-1)).relu().mean(-1)
        return pull, push

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(params["p_L"])

    def step_work(self, size: StepSize) -> Work:
        return size.texts(3)
