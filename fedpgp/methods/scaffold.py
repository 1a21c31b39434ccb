"""SCAFFOLD on prompts: control variates against the drift of clients (Karimireddy et al., ICML
2020, arXiv 1910.06378).

    client:  g <- g - c_i + c at every step;  c_i' = mean of the steps' own gradients;
             sends p and c_i' - c_i
    server:  p_G <- mean of p;  c <- c + |S|/N * mean of (c_i' - c_i)

The mean of the steps' gradients is the paper's option II, (p_G - p) / (steps lr) + c_i - c, for
plain SGD; taken directly it also holds with momentum, Adam and weight decay.
"""

import numpy as np
import torch
from torch import Tensor

from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, LoadClientBatch, Params, RoundContext, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.task import ClassSet


@register("scaffold")
class Scaffold(PromptFL):
    """Shared: p_G (m, d) and its control variate c (m, d). Personal: the client's
    control variate c_i (m, d)."""

    about = About(
        title="SCAFFOLD",
        paper="Karimireddy et al., ICML 2020",
        family="federated",
        shared="context, control variate",
        personal="control variate",
        sent="2*m*d",
        official="no code exists by the authors",
        order=8,
    )
    per_image = "shared"
    buffers = ("c", "c_i", "mean")
    delta_params = ("c",)
    needs_each_update = True  # c moves by the plain mean of all, not by the strategy's average
    equal_weights = True

    def init_shared(self, rng: np.random.Generator) -> Params:
        p_G = super().init_shared(rng)["p_G"]
        return {"p_G": p_G, "c": torch.zeros_like(p_G)}

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"c_i": torch.zeros(self.task.n_ctx, self.task.clip.width)}

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        return {"mean": torch.zeros_like(params["c_i"])}

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        loss, grads = super().gradients(params, batch, classes, step)
        params["mean"].lerp_(grads["p_G"], 1 / (step.step + 1))
        return loss, {"p_G": grads["p_G"] - params["c_i"] + params["c"]}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, "c": params["mean"] - params["c_i"], "c_i": params["mean"]}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        fraction = len(context.clients) / context.num_clients
        return {
            **averaged,
            "c": context.global_params["c"] + fraction * context.updates["c"].mean(0),
        }, {}
