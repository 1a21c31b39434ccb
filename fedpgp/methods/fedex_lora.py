"""FedEx-LoRA: A and B are averaged, and what their product lacks of the averaged products is added
to the frozen weights (Singhal et al., ACL 2025, arXiv 2410.09432), here in CLIP's towers.

    W_i = W + R + (alpha / b) B_i A_i
    server: A <- sum_i w_i A_i,  B <- sum_i w_i B_i,
            R <- R + (alpha / b) (sum_i w_i B_i A_i - B A)

The average is exact. A client sends A and B; R, a dense matrix for each layer, is sent to it.
"""

import numpy as np
import torch

from fedpgp.methods.about import About
from fedpgp.methods.base import Classifier, Params, RoundContext, register
from fedpgp.methods.lora import LoRA
from fedpgp.methods.lora_products import mean_product
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@register("fedex_lora")
class FedExLoRA(LoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer. Sent to clients: R (L, out, in).
    Nothing personal."""

    about = About(
        title="FedEx-LoRA",
        paper="Singhal et al., ACL 2025",
        family="lora",
        learns=("LoRA",),
        shared="A and B, dense residuals",
        sent="2*L*len(targets)*rank*d",
        official=(
            "declared difference: RaghavSinghal10/fedex-lora at 683a3f3 has language models and "
            "weighs clients alike; the server's equations are its own"
        ),
    )
    per_image = "shared"
    needs_each_update = True
    averages_itself = "its server makes the mean of the products B A exact, whatever A and B become"
    model_in_server_state = "the residuals R"
    no_class_embeddings = "its residual is part of the model and no part of what clients send"

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(f"{place}.R" for place in self.places)

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}

    def init_server_state(self, clients: int) -> Params:
        state: Params = {}
        for tower, at in self.placements.items():
            for layer in at.layers:
                inputs, outputs = at.sizes(layer)
                R = torch.zeros(at.blocks - at.first, outputs, inputs, dtype=torch.float64)
                state[f"{tower}.{layer}.R"] = R
        return state

    def download_for(self, client: int, server_state: Params) -> Params:
        return server_state

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        factor = self.settings.alpha / self.settings.rank
        state: Params = {}
        for place in self.places:
            names = f"{place}.A", f"{place}.B"
            exact = mean_product(context.weights, *(context.updates[name] for name in names))
            A, B = (averaged[name].double() for name in names)
            R = context.server_state[f"{place}.R"].double()
            state[f"{place}.R"] = R + factor * (exact - B @ A)
        return averaged, state

    def adapters(self, params: Params, *more: str) -> Params:
        return {**super().adapters(params, *more), **{name: params[name] for name in self.buffers}}

    def global_classifier(self, shared: Params, classes: ClassSet) -> None:
        """There is none without R, which is the server's; every client's own is the global one."""
        return None

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        return self.classifier(self.adapters(params), classes)

    def step_work(self, size: StepSize) -> Work:
        work = super().step_work(size)
        for tower, at in self.placements.items():
            for layer, rows in self.rows(size, tower).items():
                work += size.layer(rows, *at.sizes(layer), times=2)
        return work
