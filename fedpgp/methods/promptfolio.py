"""PromptFolio: class features are a portfolio of a shared and a personal prompt's (Pan et al.,
NeurIPS 2024, arXiv 2409.19610).

    z_i = (1 - theta) g(p_G) + theta g(p_i)        not normalised again
    L   = CE(z_i), which trains both
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class PromptFolioSettings:
    """Settings of PromptFolio.

    Attributes:
        theta: weight of the personal prompt: 0 is the shared one alone, 1 the personal one.
    """

    theta: float = 0.4

    def __post_init__(self):
        check_number("method.theta", self.theta, least=0, most=1)


@register("promptfolio")
class PromptFolio(PromptFL):
    """Shared: p_G (m, d). Personal: p (m, d)."""

    about = About(
        title="PromptFolio",
        paper="Pan et al., NeurIPS 2024",
        family="federated_prompts",
        shared="context",
        personal="second context",
        sent="m*d",
        passes="2",
        official="exact (run): PanBikang/PromptFolio at 8f729aa",
        order=11,
    )
    per_image = "shared"
    Settings = PromptFolioSettings

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        z_G, z_i = classes.encoder(self.task.n_ctx)(torch.stack([params["p_G"], params["p"]]))
        return torch.lerp(z_G, z_i, self.settings.theta)

    def step_work(self, size: StepSize) -> Work:
        return size.texts(2)
