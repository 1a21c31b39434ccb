"""HetLoRA: low-rank adapters of different ranks, padded with zeros; a client lowers its rank when
its last directions fade (Cho et al., EMNLP 2024, arXiv 2401.06432), here in CLIP's towers.

    W_i = W + (alpha / b) B_i A_i,   rank r_i <= b, the first r_i columns of B and rows of A
    T_i = sum over layers of |B_i[:, t:r_i]| |A_i[t:r_i]|,   t = floor(decay r_i)      its tail
    L   = CE + penalty T_i
    client: r_i <- max(least_rank, floor(decay r_i)) where T_i is less than what it was sent with
    server: A <- sum_i p_i A_i,  B <- sum_i p_i B_i,  p_i = |B_i A_i| / sum_j |B_j A_j|

A client sends what is left of its adapters; the server sees its rank by the zeros. Directions that
no client of a round has come out as zeros, and stay so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, RoundContext, StepContext, register
from fedpgp.methods.lora_ranks import KEPT, RankedLoRA, RankedLoRASettings
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class HetLoRASettings(RankedLoRASettings):
    """Settings of HetLoRA.

    Attributes:
        decay: of a client's rank; the directions beyond are its tail.
        penalty: weight of the tail in the loss.
        least_rank: to which a client's rank is lowered at most.
    """

    decay: float = 0.99
    penalty: float = 0.01
    least_rank: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_number("method.decay", self.decay, above=0, most=1)
        check_number("method.penalty", self.penalty, least=0)
        check_number("method.least_rank", self.least_rank, least=1, whole=True)


@register("hetlora")
class HetLoRA(RankedLoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer, b the largest rank. Nothing
    personal."""

    about = About(
        title="HetLoRA",
        paper="Cho et al., EMNLP 2024",
        family="lora",
        learns=("LoRA",),
        shared="A and B",
        sent="2*L*len(targets)*rank*d",
        official=(
            "no code exists by the authors; PabloE-KAIST/FedLoRA-public at 6628dea prunes and "
            "averages so"
        ),
    )
    per_image = "shared"
    needs_each_update = True
    averages_itself = "its server weighs clients by the size of their products B A"
    Settings = HetLoRASettings
    settings: HetLoRASettings

    # The client. ----------------------------------------------------------------------------------

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        return self.settings.penalty * self.tail(params, params[KEPT])

    def tail(self, tensors: Params, kept: Tensor) -> Tensor:
        """Return T_i of adapters, (K,)."""
        last = (kept * ~self.first(self._decayed(kept))).unsqueeze(1)
        total = torch.zeros_like(kept[:, 0])
        for place in self.places:
            A = tensors[f"{place}.A"] * last.unsqueeze(-1)
            B = tensors[f"{place}.B"] * last.unsqueeze(-2)
            sizes = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (A, B))
            total = total + torch.mul(*sizes).sum(-1)
        return total

    def _decayed(self, kept: Tensor) -> Tensor:
        """floor(decay r_i), (K, 1)."""
        return (self.settings.decay * kept.sum(-1, keepdim=True)).floor()

    def finish_client(self, params: Params, step: StepContext) -> Params:
        kept = params[KEPT]
        fades = self.tail(params, kept) < self.tail(step.global_params, kept)
        rank = kept.sum(-1, keepdim=True)
        lower = self._decayed(kept).clamp(min=self.settings.least_rank).minimum(rank)
        rank = torch.where(fades.unsqueeze(-1), lower, rank)
        return {**params, **self.of_rank(params, self.first(rank))}

    # The server. ----------------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        return {"ranks": torch.tensor([float(self.rank_of(client)) for client in range(clients)])}

    def download_for(self, client: int, server_state: Params) -> Params:
        rank = server_state["ranks"][client].round().clamp(min=1)
        return {KEPT: self.first(rank).to(server_state["ranks"])}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        squares = torch.zeros(len(context.clients), dtype=torch.float64)
        for place in self.places:
            A, B = (context.updates[f"{place}.{part}"].double() for part in "AB")
            # |B A|^2 without the dense matrix.
            squares += ((B.mT @ B) * (A @ A.mT)).sum((-3, -2, -1)).clamp(min=0)
        sizes = squares.sqrt()
        weights = sizes / sizes.sum() if sizes.any() else context.weights.double()
        shared = {
            name: torch.einsum("s,s...->...", weights, sent.double())
            for name, sent in context.updates.items()
        }
        ranks = context.server_state["ranks"].clone()
        clients = list(context.clients)
        ranks[clients] = self._ranks_in(context, ranks[clients])
        return shared, {"ranks": ranks}

    def _ranks_in(self, context: RoundContext, before: Tensor) -> Tensor:
        """Return the clients' ranks after a round, (S,): lower than before where one sends zeros
        for a direction that it was sent."""
        places = [f"{place}.A" for place in self.places]
        was = torch.stack([(context.global_params[n] != 0).any(-1).any(0) for n in places]).any(0)
        is_left = torch.stack([(context.updates[n] != 0).any(-1).any(1) for n in places]).any(0)
        numbers = torch.arange(1, self.settings.rank + 1)
        taken_off = (was & ~is_left & (numbers <= before.unsqueeze(-1))).any(-1)
        left = (is_left * numbers).amax(-1).clamp(min=1).to(before)
        return torch.where(taken_off, left.minimum(before), before)
