"""Ditto on prompts: a shared context by federated averaging, and a personal one that is pulled
towards it (Li et al., ICML 2021, arXiv 2012.04221).

    p_G:  L = CE(p_G)
    p_i:  L = CE(p_i) + lambda/2 * ||p_i - p_G||^2        p_G as received this round

Both are trained in the same steps; neither's gradient reaches the other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class DittoSettings:
    """Settings of Ditto.

    Attributes:
        pull: lambda, weight of the pull (the paper tries 0.05 to 2).
    """

    pull: float = 1.0

    def __post_init__(self):
        check_number("method.pull", self.pull, least=0)


@register("ditto")
class Ditto(PromptFL):
    """Shared: p_G (m, d). Personal: p (m, d)."""

    about = About(
        title="Ditto",
        paper="Li et al., ICML 2021",
        family="federated",
        shared="context",
        personal="second context",
        sent="m*d",
        passes="2",
        official="exact (read): litian96/ditto at 26d9b29",
        order=7,
    )
    per_image = "shared"
    equal_weights = True
    starts_as_shared = True
    Settings = DittoSettings

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        both = classes.encoder(self.task.n_ctx)(torch.stack([params["p_G"], params["p"]]))
        losses = [
            cross_entropy(
                self.logits(classifier, batch.images, classes), batch.labels, batch.weights
            )
            for classifier in both
        ]
        return losses[0] + losses[1]

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        distance = (params["p"] - step.global_params["p_G"]).square().sum((-2, -1))
        return self.settings.pull / 2 * distance

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(params["p"])

    def step_work(self, size: StepSize) -> Work:
        return size.texts(2)
