"""FedPGP's idea moved from the prompt to adapters in the text tower: a shared adapter, a private
low-rank term, and FedPGP's prompt-wise contrastive loss (Cui et al., ICML 2024, arXiv 2405.09771).

    W_G = W + (alpha / b) B_G A_G                the general text tower
    W_i = W_G + (alpha / b_i) B_i A_i            the personal one of client i
    z_G, z_i, z_C = text features under W_G, W_i and the frozen W
    L   = CE(z_i) + mu * L_con
    L_con = mean_c -log( e^{cos(z_G, z_C)/tau} / (e^{cos(z_G, z_C)/tau} + e^{cos(z_G, z_i)/tau}) )

A_G and B_G are averaged, A_i and B_i stay.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Classifier, Params, StepContext, register
from fedpgp.methods.lora import LoRA, LoRASettings
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text.templates import PLAIN

OWN = "own."
"""Prefix of the names of the private term's tensors."""


@dataclass(frozen=True)
class FedPGPLoRASettings(LoRASettings):
    """Settings of FedPGP with adapters.

    Attributes:
        own_rank: b_i, of the private term.
        mu: weight of the contrastive loss.
        tau: its temperature.
    """

    own_rank: int = 8
    mu: float = 0.5
    tau: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_number("method.own_rank", self.own_rank, least=1, whole=True)
        check_number("method.mu", self.mu, least=0)
        check_number("method.tau", self.tau, above=0)
        if self.where == "image":
            raise FedPGPError(
                "method.where=image: the contrastive loss is of texts, so that method=fedpgp_lora "
                "needs adapters in the text tower: text or both"
            )


@register("fedpgp_lora")
class FedPGPLoRA(LoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer. Personal: the same of rank b_i."""

    about = About(
        title="FedPGP-LoRA",
        paper="this project, after Cui et al., ICML 2024",
        family="lora",
        learns=("LoRA",),
        shared="A and B",
        personal="A and B of a low-rank term",
        sent="2*L*len(targets)*rank*d",
        passes="2; 1 with `method.mu=0`",
    )
    per_image = "shared"
    small = {"rank": 2, "own_rank": 2}
    private = (OWN,)
    Settings = FedPGPLoRASettings
    settings: FedPGPLoRASettings

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}

    def init_personal(self, rng: np.random.Generator) -> Params:
        rank = self.settings.own_rank
        term = {**self.start_A(rng, rank), **self.start_B(rank)}
        return {f"{OWN}{name}": tensor for name, tensor in term.items()}

    def contexts(self, training: bool) -> int:
        return 3

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        classifier = self.personal_classifier(params, classes)
        logits = self.logits(classifier, batch.images, classes)
        loss = cross_entropy(logits, batch.labels, batch.weights)
        if self.settings.mu == 0:
            return loss
        z_i = classifier if isinstance(classifier, Tensor) else classifier["texts"]
        return loss + self._contrast(params, z_i, classes)

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        if self.settings.mu == 0:
            return None
        z_i = self.texts(self.adapters(params, *self.private), classes)
        return self._contrast(params, z_i, classes)

    def _contrast(self, params: Params, z_i: Tensor, classes: ClassSet) -> Tensor:
        """mu L_con, (K,)."""
        z_G, z_C = self.texts(self.adapters(params), classes), classes.features_of(PLAIN)
        return self.settings.mu * prompt_contrastive_loss(z_G, z_C, z_i, self.settings.tau)

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        return self.classifier(self.adapters(params, *self.private), classes)

    def step_work(self, size: StepSize) -> Work:
        settings = self.settings
        personal = self.work(size, settings.rank + settings.own_rank)
        if settings.mu == 0:
            return personal
        return personal + self.work(size, settings.rank, towers=("text",))
