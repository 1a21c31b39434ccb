"""Local CoOp: every client learns its own context and sends nothing (Zhou et al., IJCV
2022, arXiv 2109.01134).

It continues from round to round with its own context, so it trains as many epochs as the federated
methods (public "local" baselines restart from the initial weights every round).
"""

import numpy as np
from torch import Tensor

from fedpgp.methods.about import About
from fedpgp.methods.base import Method, Params, register
from fedpgp.prompts import starting_context
from fedpgp.task import ClassSet


@register("coop")
class CoOp(Method):
    """One personal context (m, d), nothing shared and so no global model."""

    about = About(
        title="CoOp",
        paper="Zhou et al., IJCV 2022; each client alone",
        family="prompts",
        personal="context",
        official="exact (run): KaiyangZhou/CoOp at ff61507",
        order=3,
    )
    per_image = "shared"
    no_class_embeddings = "its clients send nothing"
    starts_as_shared = True

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def global_classifier(self, shared: Params, classes: ClassSet) -> None:
        return None

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        context = params["p"]
        return classes.encoder(context.shape[-2])(context)
