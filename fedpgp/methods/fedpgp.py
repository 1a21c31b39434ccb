"""FedPGP: a shared prompt, a private low-rank term, a prompt-wise contrastive loss (Cui et al.,
ICML 2024, arXiv 2405.09771).

    p_i = p_G + U_i V_i                      the personal context of client i
    z_G = g(p_G),  z_i = g(p_i)              text features under the global and the personal context
    z_C = g("a photo of a {class}.")         frozen guidance: CLIP's own knowledge
    L   = CE(z_i) + mu * L_con               cross-entropy of the personal prompt, and
    L_con = mean_c -log( e^{cos(z_G, z_C)/tau} / (e^{cos(z_G, z_C)/tau} + e^{cos(z_G, z_i)/tau}) )

The client trains p_G, U_i and V_i together; p_G goes to the server, U_i and V_i stay. Other
personal terms in the place of U_i V_i are in :mod:`fedpgp.methods.fedpgp_terms`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, LoadClientBatch, Method, Params, StepContext, register
from fedpgp.methods.fedpgp_terms import TERMS
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet, Task
from fedpgp.text.templates import PLAIN

GUIDANCES = ("plain", "photo", "context")


@dataclass(frozen=True)
class FedPGPSettings:
    """Settings of FedPGP.

    Attributes:
        rank: b, the rank of the personal term.
        mu: weight of the contrastive loss.
        tau: its temperature.
        guidance: z_C is ``plain`` ("a photo of a {class}." for every data set, as in the
            paper), ``photo`` (the data set's template) or ``context`` ("X X … {class}.",
            as the public code does).
        personal_init: ``zero`` (U = 0, V normal: starts at the global prompt) or ``normal`` (both
            N(0, 0.02²), as the public code does).
        personal: the personal term, a name of :data:`fedpgp.methods.fedpgp_terms.TERMS`.
        contrast: ``both``, or ablations in which one similarity of the contrastive
            loss is 0: ``positive`` (z_G is drawn to z_C alone) and ``negative`` (z_G
            is pushed from z_i alone).
        images_a_rank: above 0, a client has one rank for so many images, at most ``rank``.
        experts: number of shared low-rank experts (``personal=experts``).
    """

    rank: int = 8
    mu: float = 0.5
    tau: float = 0.5
    guidance: str = "plain"
    personal_init: str = "normal"
    personal: str = "low_rank"
    contrast: str = "both"
    images_a_rank: int = 0
    experts: int = 4

    def __post_init__(self):
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.tau", self.tau, above=0)
        check_number("method.mu", self.mu, least=0)
        check_number("method.images_a_rank", self.images_a_rank, least=0, whole=True)
        check_number("method.experts", self.experts, least=1, whole=True)
        check_choice("method.guidance", self.guidance, GUIDANCES)
        check_choice("method.personal", self.personal, TERMS)
        check_choice("method.personal_init", self.personal_init, ("zero", "normal"))
        check_choice("method.contrast", self.contrast, ("both", "positive", "negative"))


@register("fedpgp")
class FedPGP(Method):
    """Shared: p_G (m, d). Personal: U (m, b), V (b, d)."""

    about = About(
        title="FedPGP",
        paper="Cui et al., ICML 2024",
        family="federated_prompts",
        shared="context",
        personal="low-rank term",
        sent="m*d",
        passes="2; 1 with `method.mu=0`",
        official=(
            "exact (run) with `method.guidance=context` `method.personal_init=normal`: "
            "TianyuCuiOvO/FedPGP at d43045b"
        ),
        order=1,
    )
    per_image = "shared"
    small = {"rank": 2}
    Settings = FedPGPSettings
    settings: FedPGPSettings

    def __init__(self, settings: FedPGPSettings, task: Task):
        super().__init__(settings, task)
        self.term = TERMS[settings.personal](settings, task)
        self.buffers = self.term.buffers

    @property
    def shares_one_model(self) -> bool:
        return self.settings.personal == "none"

    def init_shared(self, rng: np.random.Generator) -> Params:
        p_G = starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)
        return {"p_G": p_G, **self.term.shared(rng)}

    def init_personal(self, rng: np.random.Generator) -> Params:
        return self.term.start(rng)

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        return self.term.precompute(
            params, lambda: (load_batch(images=False).weights > 0).sum(1, keepdim=True)
        )

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        return self._loss(params["p_G"], self.term.context(params), batch, classes)

    def _loss(self, p_G: Tensor, p_i: Tensor, batch: Batch, classes: ClassSet) -> Tensor:
        if self.settings.mu == 0:
            z_i = self._encode(p_i, classes)
            return cross_entropy(
                self.logits(z_i, batch.images, classes), batch.labels, batch.weights
            )
        z_G, z_i = self._encode(torch.stack([p_G, p_i]), classes)
        ce = cross_entropy(self.logits(z_i, batch.images, classes), batch.labels, batch.weights)
        return ce + self._contrast(z_G, z_i, classes)

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        if self.settings.mu == 0:
            return None
        contexts = torch.stack([params["p_G"], self.term.context(params)])
        return self._contrast(*self._encode(contexts, classes), classes)

    def why_not_per_image(self) -> str | None:
        if self.settings.personal == "lora_sb":
            return (
                "method.personal=lora_sb: its term starts at the gradient of a client's first "
                "batch, without noise; take another"
            )
        return None

    def _contrast(self, z_G: Tensor, z_i: Tensor, classes: ClassSet) -> Tensor:
        """mu L_con, (K,)."""
        positive = None if self.settings.contrast == "negative" else self.guidance(classes)
        negative = None if self.settings.contrast == "positive" else z_i
        return self.settings.mu * prompt_contrastive_loss(
            z_G, positive, negative, self.settings.tau
        )

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        if step.step == 0:
            self.term.fit(params, lambda: self._gradient_at_p_i(params, batch, classes), step.lr)
        loss, grads = super().gradients(params, batch, classes, step)
        return loss, self.term.change(grads, params)

    def _gradient_at_p_i(self, params: Params, batch: Batch, classes: ClassSet) -> Tensor:
        p_i = self.term.context(params).detach().requires_grad_()
        with torch.enable_grad():
            loss = self._loss(params["p_G"], p_i, batch, classes)
            return torch.autograd.grad(loss.sum(), p_i)[0]

    def guidance(self, classes: ClassSet) -> Tensor:
        """z_C, (C, e): frozen, so that gradients reach p_G, U and V through z_G and z_i alone."""
        if self.settings.guidance == "plain":
            return classes.features_of(PLAIN)
        return (
            classes.template_features
            if self.settings.guidance == "photo"
            else classes.placeholder_features
        )

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return self._encode(shared["p_G"], classes)

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return self._encode(self.term.context(params), classes)

    def _encode(self, context: Tensor, classes: ClassSet) -> Tensor:
        return classes.encoder(context.shape[-2])(context)

    def step_work(self, size: StepSize) -> Work:
        return size.texts(1 if self.settings.mu == 0 else 2)
