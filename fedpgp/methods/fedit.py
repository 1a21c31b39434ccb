"""FedIT: federated averaging of low-rank adapters (Zhang et al., ICASSP 2024, arXiv 2305.05644),
here in CLIP's towers.

    W_i = W + (alpha / b) B_i A_i
    server: A <- sum_i w_i A_i,  B <- sum_i w_i B_i

The product of the averages is not the average of the products.
"""

import numpy as np

from fedpgp.methods.about import About
from fedpgp.methods.base import Params, register
from fedpgp.methods.lora import LoRA


@register("fedit")
class FedIT(LoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer. Nothing personal."""

    about = About(
        title="FedIT",
        paper="Zhang et al., ICASSP 2024",
        family="lora",
        learns=("LoRA",),
        shared="A and B",
        sent="2*L*len(targets)*rank*d",
        official=(
            "declared difference: adapters are in CLIP's towers, without dropout, and averaged "
            "as in JayZhang42/FederatedGPT-Shepherd at 8c86fe9"
        ),
    )
    per_image = "shared"

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}
