"""FlexLoRA: the server averages the products of low-rank adapters, and gives each client the best
of its own rank (Bai et al., NeurIPS 2024, arXiv 2402.11505), here in CLIP's towers.

    W_i = W + (alpha / b) B_i A_i,   rank b_i <= b
    server: sum_i w_i B_i A_i = U Sigma V^T;  B <- U Sigma,  A <- V^T,  to rank b
    client: the first b_i columns of B and rows of A

The average is exact up to the singular values beyond rank b, which are left out.
"""

from fedpgp.methods.about import About
from fedpgp.methods.base import Params, RoundContext, register
from fedpgp.methods.lora_products import best_factors
from fedpgp.methods.lora_ranks import RankedLoRA


@register("flexlora")
class FlexLoRA(RankedLoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer. Nothing personal."""

    about = About(
        title="FlexLoRA",
        paper="Bai et al., NeurIPS 2024",
        family="lora",
        learns=("LoRA",),
        shared="A and B",
        sent="2*L*len(targets)*rank*d",
        official="no code exists that was found",
    )
    per_image = "shared"
    needs_each_update = True
    averages_itself = "its server averages the products B A of the clients' adapters"

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        shared: Params = {}
        for place in self.places:
            A, B = (context.updates[f"{place}.{part}"] for part in "AB")
            best = best_factors(context.weights, A, B, self.settings.rank)
            shared |= {f"{place}.A": best[0], f"{place}.B": best[1]}
        return shared, context.server_state
