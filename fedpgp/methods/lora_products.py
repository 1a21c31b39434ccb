"""What a server makes of the products B_i A_i of its clients' low-rank adapters.

Shapes: A (S, L, b, in) and B (S, L, out, b) of the S clients of a round, weights (S,) that sum to
one. Everything is computed in float64.
"""

import torch
from torch import Tensor


def mean_product(weights: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return sum_i w_i B_i A_i, (L, out, in)."""
    return torch.einsum("s,slob,slbi->loi", weights.double(), B.double(), A.double())


def best_factors(weights: Tensor, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (L, rank, in) and B (L, out, rank) whose product is the nearest of its rank to
    sum_i w_i B_i A_i (Eckart and Young): B = U Sigma, A = V^T of its singular value decomposition.

    Rows of A and columns of B stand in order of their singular values, so that the first b of them
    are the nearest of rank b.
    """
    U, sigma, Vh = _decomposed(weights, A, B)
    factors = U * sigma.unsqueeze(-2), Vh
    return factors[1][:, :rank], factors[0][:, :, :rank]


def best_basis(
    weights: Tensor, A: Tensor, B: Tensor, rank: int, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same product as :func:`best_factors` with the singular values in A, so that the
    columns of B are orthonormal: B = U, A = Sigma V^T.

    A decomposition leaves the sign of each column of U free; here none points away from the same
    column of ``before`` (L, out, rank), so that a mean of B over rounds does not cancel.
    """
    U, sigma, Vh = _decomposed(weights, A, B)
    A, B = (sigma.unsqueeze(-1) * Vh)[:, :rank], U[:, :, :rank]
    signs = torch.where((B * before.double()).sum(-2) < 0, -1.0, 1.0).double()
    return signs.unsqueeze(-1) * A, B * signs.unsqueeze(-2)


def _decomposed(weights: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (L, out, n), Sigma (L, n) and V^T (L, n, in) of sum_i w_i B_i A_i, n = min(out, in, S b).
    The dense matrix is not made: the sum is one product of stacked factors, and its singular
    vectors lie in their spans."""
    left = (weights.double().view(-1, 1, 1, 1) * B.double()).permute(1, 2, 0, 3).flatten(2)
    right = A.double().transpose(0, 1).flatten(1, 2)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.mT)
    U, sigma, Vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    return q_left @ U, sigma, Vh @ q_right.mT
