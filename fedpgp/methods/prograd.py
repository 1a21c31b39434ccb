"""ProGrad, federated: no step against what CLIP knows (Zhu et al., ICCV 2023, arXiv 2205.14865).

    a = CE,  b = -T^2 sum_c softmax(y_C / T)_c log softmax(y / T)_c        y_C: zero-shot logits
    g = g_a                                   where <g_a, g_b> >= 0
    g = g_a - lambda <g_a, g_b> g_b / |g_b|^2   otherwise

b is never added to the loss. Each client projects its own gradients; the context is averaged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, cosine_logits, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


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

    def why_not_per_image(self) -> str:
        return (
            "method=prograd: its step is made of two gradients of a batch; only one is clipped and "
            "noised"
        )

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        p_G, heat = params["p_G"].detach().requires_grad_(), self.settings.temperature
        with torch.enable_grad():
            logits = self.logits(
                self.global_classifier({"p_G": p_G}, classes), batch.images, classes
            )
            loss = cross_entropy(logits, batch.labels, batch.weights)
            zero_shot = cosine_logits(
                classes.template_features, batch.images.features, self.task.logit_scale
            )
            known = (zero_shot / heat).softmax(-1)
            distance = -(known * (logits / heat).log_softmax(-1)).sum(-1) * heat**2
            (g_a,) = torch.autograd.grad(loss.sum(), p_G, retain_graph=True)
            (g_b,) = torch.autograd.grad((distance * batch.weights).sum(), p_G)
        agreement = (g_a * g_b).sum((-2, -1), keepdim=True)
        square = g_b.square().sum((-2, -1), keepdim=True)
        against = torch.where((agreement < 0) & (square > 0), agreement / square, 0)
        return loss.detach(), {"p_G": g_a - self.settings.strength * against * g_b}

    def step_work(self, size: StepSize) -> Work:
        return size.texts(backward=2)
