"""How near clients' low-rank adapters are: the principal angles between the columns of their B.

    d_ij = mean over layers of 1 - |U_i^T U_j|^2 / b        U_i orthonormal, of B_i's columns
    a_ij = exp(-d_ij^2 / (2 sigma^2)),  sigma the median of d_ij, i != j

Shapes: a client's B as a list of (L, out, b), one for each layer name; of n clients (n, L, out, b).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def unit(B: Tensor) -> Tensor:
    """Return B (..., out, b), each of Frobenius norm one; zeros stay."""
    norm = torch.linalg.matrix_norm(B, keepdim=True)
    return B / norm.clamp(min=torch.finfo(B.dtype).tiny)


def distances(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return d (n, m) between n and m clients, float64."""
    total, layers = 0.0, 0
    for B, others in zip(one, other, strict=True):
        U, V = (torch.linalg.svd(t.double(), full_matrices=False)[0] for t in (B, others))
        # A client at a time: all pairs at once are n x m matrices a layer.
        alike = torch.stack([(u.mT @ V).square().sum((-2, -1)).sum(-1) for u in U])
        total, layers = total + alike / B.shape[-1], layers + B.shape[1]
    return 1 - total / layers


def affinities(d: Tensor) -> Tensor:
    """Return a (n, n) of distances (n, n)."""
    apart = d[~torch.eye(len(d), dtype=torch.bool)]
    if not len(apart) or not (sigma := apart.median()) > 0:
        return torch.ones_like(d)
    a = (-(d**2) / (2 * sigma**2)).exp()
    return a.fill_diagonal_(1.0)


def overlap(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the sum over layers of |B_i^T B_j|^2 of n clients' two adapters, (n,)."""
    return sum((B.mT @ C).square().sum((-3, -2, -1)) for B, C in zip(one, other, strict=True))
