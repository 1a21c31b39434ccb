"""Entropic optimal transport between an image's patches and a class's prompts: many problems at
once, stable at any entropy.

Costs are ``1 - cos``; each problem is P patches x M prompts with M of a few. No gradient goes
through a plan (FedOTP, PLOT): it only weighs the similarities.
"""

import math

import torch
from torch import Tensor

FAR = 10.0
"""Change of a potential behind which a kernel is made anew."""


@torch.no_grad()
def plans(
    cost: Tensor,
    mass: float,
    epsilon: float,
    threshold: float,
    iterations: int,
    *,
    unbalanced: bool,
) -> Tensor:
    """Transport plans by Sinkhorn's iteration.

    Balanced: every row (patch) sends 1/P, every column (prompt) takes 1/M. Unbalanced (FedOTP): a
    row sends at most 1/P, a column takes exactly ``mass``/M. With K = exp(-cost / epsilon), v = 1:

        u = a / (K v)      unbalanced: min(1, .)        v = b / (K^T u)

    Each problem stops by itself, when its mean change of log v is below the threshold: what else is
    in the batch does not change it, and it costs nothing any more. (Public code stops the whole
    batch, on the mean change of v.)

    u and v are kept as logarithms. Behind the first iteration, two products with a kernel take the
    place of two sums of exponentials: K times an earlier v, each row divided by its largest value,
    made anew when v has gone far from that one. After an iteration every column takes its share
    from some row, so nothing that counts underflows in it.

    Args:
        cost: (..., M, P).
        mass: total mass of an unbalanced plan, at most 1.
        epsilon: of the entropy.
        threshold, iterations: when to stop.

    Returns:
        (..., M, P), without gradient.
    """
    columns, rows = cost.shape[-2:]
    log_a, log_b = -math.log(rows), math.log((mass if unbalanced else 1.0) / columns)
    log_K = cost.reshape(-1, columns, rows) / -epsilon
    plan, left = torch.empty_like(log_K), torch.arange(len(log_K), device=cost.device)
    log_v = log_K.new_zeros(len(log_K), columns, 1)
    base = kernel = peak = log_v
    for i in range(iterations):
        before = log_v
        if i == 0:
            log_u = log_a - log_K.logsumexp(1, keepdim=True)
        else:
            if i == 1 or (log_v - base).abs().max() > FAR:
                base, kernel = log_v, log_K + log_v
                peak = kernel.amax(1, keepdim=True)
                kernel.sub_(peak).exp_()
            log_u = log_a - peak - ((log_v - base).exp().mT @ kernel).log()
        if unbalanced:
            log_u.clamp_(max=0)
        if i == 0:
            log_v = log_b - (log_K + log_u).logsumexp(2, keepdim=True)
        else:
            largest = (log_u + peak).amax(2, keepdim=True)
            log_v = base + log_b - largest - (kernel @ (log_u + peak - largest).exp().mT).log()
        going = (log_v - before).abs().mean((1, 2)) >= threshold
        if i + 1 == iterations:
            going.fill_(False)
        if going.all():
            continue
        done = ~going
        plan[left[done]] = (log_K[done] + log_u[done] + log_v[done]).exp()
        if done.all():
            break
        left, log_K, log_v, base, kernel, peak = (
            t[going] for t in (left, log_K, log_v, base, kernel, peak)
        )
    return plan.view(cost.shape)


def similarities(patches: Tensor, classifier: Tensor) -> Tensor:
    """Return cosines of unit-norm patches (K, B, P, e) and a classifier (K, M, C, e):
    (K, B, C, M, P)."""
    clients, images, rows = patches.shape[:3]
    columns, classes = classifier.shape[1:3]
    flat = classifier.flatten(1, 2) @ patches.flatten(1, 2).transpose(1, 2)
    return flat.view(clients, columns, classes, images, rows).permute(0, 3, 2, 1, 4)
