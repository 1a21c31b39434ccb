"""Private tensors of several clients made into one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedpgp.client_models import State
from fedpgp.errors import FedPGPError

FACTORS = {"U", "V"}
"""Names of the private tensors whose product is a low-rank term."""


def blend(states: Sequence[State], weights: Sequence[float] | np.ndarray) -> State:
    """Return the weighted mean of clients' private tensors.

    Low-rank terms are averaged as products and cut back to their rank b by a singular value
    decomposition, since the mean of factors is no factor of the mean:

        T = sum_k w_k U_k V_k = A S B^T,    U = A_b S_b^(1/2),    V = S_b^(1/2) B_b^T

    Other tensors are averaged one by one.

    Args:
        states: of the clients, alike in names and shapes.
        weights: of each, which sum to one.

    Raises:
        FedPGPError: factors beside other tensors, whose mean has no meaning.
    """
    names = set(states[0])
    weights = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
    if names == FACTORS:
        u, v = states[0]["U"], states[0]["V"]
        terms = torch.stack([product(state) for state in states])
        left, right = factors((weights[:, None, None] * terms).sum(0), u.shape[-1])
        return {"U": left.to(u), "V": right.to(v)}
    if names & FACTORS:
        raise FedPGPError(
            f"private tensors {', '.join(sorted(names))} cannot be averaged: take "
            "method.personal=low_rank"
        )
    return {
        name: torch.einsum(
            "k,k...->...", weights, torch.stack([state[name].cpu().double() for state in states])
        ).to(states[0][name])
        for name in states[0]
    }


def product(state: State) -> Tensor:
    """Return the term U V of private tensors, (m, d) float64."""
    return state["U"].cpu().double() @ state["V"].cpu().double()


def factors(term: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U (m, b) and V (b, d) of the nearest term of rank b (Eckart and Young), each with the
    root of the singular values."""
    left, values, right = torch.linalg.svd(term, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]
