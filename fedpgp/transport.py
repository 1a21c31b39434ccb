"""Entropic optimal transport between an image's patches and a class's prompts: many problems at once, in logarithms.

Costs are ``1 - cos``; each problem is M patches x N prompts with N of a few. No gradient goes through a plan (FedOTP,
PLOT): it only weighs the similarities.
"""

import math

import torch
from torch import Tensor


@torch.no_grad()
def plans(cost: Tensor, mass: float, epsilon: float, threshold: float, iterations: int, *, unbalanced: bool) -> Tensor:
    """Transport plans by Sinkhorn's iteration.

    Balanced: every row (patch) sends 1/M, every column (prompt) takes 1/N. Unbalanced (FedOTP): a row sends at most
    1/M, a column takes exactly ``mass``/N. With K = exp(-cost / epsilon), v = 1:

        u = a / (K v)      unbalanced: min(1, .)        v = b / (K^T u)

    Each problem stops by itself, when its mean change of log v is below the threshold: what else is in the batch does
    not change it. (Public code stops the whole batch, on the mean change of v.)

    Args:
        cost: (..., N, M).
        mass: total mass of an unbalanced plan, at most 1.
        epsilon: of the entropy.
        threshold, iterations: when to stop.

    Returns:
        (..., N, M), without gradient.
    """
    log_kernel = cost.div(-epsilon)
    columns, rows = cost.shape[-2:]
    log_a, log_b = -math.log(rows), math.log((mass if unbalanced else 1.0) / columns)
    u, v = torch.zeros_like(cost[..., 0, :]), torch.zeros_like(cost[..., 0])
    active = torch.ones(cost.shape[:-2], dtype=torch.bool, device=cost.device).unsqueeze(-1)
    for _ in range(iterations):
        new_u = log_a - (log_kernel + v.unsqueeze(-1)).logsumexp(-2)
        if unbalanced:
            new_u = new_u.clamp(max=0)
        new_v = log_b - (log_kernel + new_u.unsqueeze(-2)).logsumexp(-1)
        u = torch.where(active, new_u, u)
        change = (new_v - v).abs().mean(-1, keepdim=True)
        v = torch.where(active, new_v, v)
        active &= change >= threshold
        if not active.any():
            break
    return (log_kernel + u.unsqueeze(-2) + v.unsqueeze(-1)).exp()


def similarities(patches: Tensor, features: Tensor) -> Tensor:
    """Cosines of unit-norm patches (K, B, M, e) and prompts' class features (K, N, C, e): (K, B, C, N, M)."""
    clients, images, rows = patches.shape[:3]
    columns, classes = features.shape[1:3]
    flat = features.flatten(1, 2) @ patches.flatten(1, 2).transpose(1, 2)
    return flat.view(clients, columns, classes, images, rows).permute(0, 3, 2, 1, 4)
