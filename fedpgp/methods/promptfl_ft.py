"""PromptFL with local fine-tuning: everybody answers with its own copy of the shared
context, trained at home.

The federation is PromptFL's. A client's own model is the context as it left the client's training
of its last round: the shared context of that round, fine-tuned for the local epochs. (Public code
of the same name trains and averages the text projection instead.)
"""

import numpy as np
import torch
from torch import Tensor

from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.task import ClassSet


@register("promptfl_ft")
class PromptFLFT(PromptFL):
    """Shared: p_G (m, d). Personal: p (m, d), the fine-tuned copy, and whether there is one yet."""

    about = About(
        title="PromptFL + fine-tuning",
        paper="Guo et al., IEEE TMC 2023",
        family="prompts",
        shared="context",
        personal="its fine-tuned copy",
        sent="m*d",
        official=(
            "declared difference: PanBikang/PromptFolio at 8f729aa trains and averages the text "
            "projection too, and tunes nothing afterwards"
        ),
        order=4,
    )
    per_image = "shared"
    sent_copies = ("p",)
    buffers = ("p", "tuned")

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": torch.zeros(self.task.n_ctx, self.task.clip.width), "tuned": torch.zeros(1, 1)}

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        return super().image_term(
            {**params, "tuned": torch.zeros_like(params["tuned"])}, batch, classes, step
        )

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, "p": params["p_G"], "tuned": torch.ones_like(params["tuned"])}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return self.global_classifier(
            {"p_G": torch.where(params["tuned"] > 0, params["p"], params["p_G"])}, classes
        )
