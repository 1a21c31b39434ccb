"""PromptFL: federated averaging of one CoOp context (Guo et al., IEEE TMC 2023, arXiv 2208.11625).

Everybody learns the context ``p_G`` by cross-entropy; the server averages the copies, weighted by
the number of images (the original code averages unweighted, all later ones weighted).
"""

import numpy as np
from torch import Tensor

from fedpgp.methods.about import About
from fedpgp.methods.base import Method, Params, register
from fedpgp.prompts import starting_context
from fedpgp.task import ClassSet


@register("promptfl")
class PromptFL(Method):
    """One shared context (m, d), no personal tensor."""

    about = About(
        title="PromptFL",
        paper="Guo et al., IEEE TMC 2023",
        family="prompts",
        shared="context",
        sent="m*d",
        official=(
            "exact (run) with `method.weighting=equal`: PEILab-Federated-Learning/PromptFL at "
            "da401e7"
        ),
        order=2,
    )
    per_image = "shared"

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {
            "p_G": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)
        }

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        context = shared["p_G"]
        return classes.encoder(context.shape[-2])(context)
