"""ProGrad, federated: no step against what CLIP knows (Zhu et al., ICCV 2023, arXiv 2205.14865).

    a = CE,  b = -T^2 sum_c softmax(y_C / T)_c log softmax(y / T)_c        y_C: zero-shot logits
    g = g_a                                   where <g_a, g_b> >= 0
    g = g_a - lambda <g_a, g_b> g_b / |g_b|^2   otherwise

b is never added to the loss. Each client projects its own gradients; the context is averaged.

With ``privacy=image`` both gradients are released: those of an image are clipped together, as one
vector, and noise is on both sums. The projection follows from them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, cosine_logits, register
from fedpgp.methods.batch_gradients import batch_gradients
from fedpgp.methods.promptfl import PromptFL
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

COPY = "p_G/distance"
"""A copy of the context by which the distance is differentiated."""


@dataclass(frozen=True)
class ProGradSettings:
    """Settings of ProGrad.

    Attributes:
        strength: lambda: 1 takes the whole conflicting part away, 0 nothing (PromptFL).
        temperature: T of the distillation term.
    """

    strength: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        check_number("method.strength", self.strength, least=0)
        check_number("method.temperature", self.temperature, above=0)


@register("prograd")
class ProGrad(PromptFL):
    """One shared context (m, d), no personal tensor."""

    about = About(
        title="ProGrad",
        paper="Zhu et al., ICCV 2023",
        family="prompt_learning",
        shared="context",
        sent="m*d",
        official="exact (run): BeierZhu/Prompt-align at 1b76203",
        order=23,
    )
    Settings = ProGradSettings

    per_image = "shared"

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        """The cross-entropy; beside :data:`COPY` a term of zero, whose gradient by that copy of the
        context is the distance's."""
        term = super().image_term(params, batch, classes, step)
        if COPY not in params:
            return term
        logits = self.logits(
            self.global_classifier({"p_G": params[COPY]}, classes), batch.images, classes
        )
        distances = self._distances(logits, batch, classes)
        return term + ((distances - distances.detach()) * batch.weights).sum(-1)

    def _distances(self, logits: Tensor, batch: Batch, classes: ClassSet) -> Tensor:
        """b of each image, (K, B)."""
        heat = self.settings.temperature
        zero_shot = cosine_logits(
            classes.template_features, batch.images.features, self.task.logit_scale
        )
        known = (zero_shot / heat).softmax(-1)
        return -(known * (logits / heat).log_softmax(-1)).sum(-1) * heat**2

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        if self.differentiate is batch_gradients:
            loss, g_a, g_b = self._of_one_pass(params, batch, classes)
        else:
            both = {**params, COPY: params["p_G"]}
            loss, grads = self.differentiate(self, both, batch, classes, step)
            g_a, g_b = grads["p_G"], grads[COPY]
        agreement = (g_a * g_b).sum((-2, -1), keepdim=True)
        square = g_b.square().sum((-2, -1), keepdim=True)
        against = torch.where((agreement < 0) & (square > 0), agreement / square, 0)
        return loss, {"p_G": g_a - self.settings.strength * against * g_b}

    def _of_one_pass(
        self, params: Params, batch: Batch, classes: ClassSet
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and both gradients, by one forward pass."""
        p_G = params["p_G"].detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(
                self.global_classifier({"p_G": p_G}, classes), batch.images, classes
            )
            loss = cross_entropy(logits, batch.labels, batch.weights)
            distances = self._distances(logits, batch, classes)
            (g_a,) = torch.autograd.grad(loss.sum(), p_G, retain_graph=True)
            (g_b,) = torch.autograd.grad((distances * batch.weights).sum(), p_G)
        return loss.detach(), g_a, g_b

    def step_work(self, size: StepSize) -> Work:
        return size.texts(backward=2)
