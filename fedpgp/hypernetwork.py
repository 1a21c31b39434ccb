"""A hypernetwork: a network that writes the term of a client from what is known of it.

    a_0 = x;    a_l = ReLU(W_l a_(l-1) + b_l)    for each hidden layer
    h(x) = W a + b                               all numbers of a term

It starts at h = 0, whatever x is.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.layers import Params, linear_start

OUT = "h.out"


def hypernetwork_start(
    inputs: int, hidden: int, layers: int, outputs: int, rng: np.random.Generator
) -> Params:
    """Return phi at its start: hidden layers as torch starts them, zeros behind them."""
    params: Params = {}
    for layer in range(layers):
        params |= linear_start(f"h.{layer}", hidden, hidden if layer else inputs, rng)
    last = linear_start(OUT, outputs, hidden if layers else inputs, rng)
    return params | {name: torch.zeros_like(tensor) for name, tensor in last.items()}


def hypernetwork(phi: Params, x: Tensor) -> Tensor:
    """Return h(x): (..., inputs) -> (..., outputs)."""
    layers = sum(name.endswith(".weight") for name in phi) - 1
    for layer in range(layers):
        x = F.linear(x, phi[f"h.{layer}.weight"], phi[f"h.{layer}.bias"]).relu()
    return F.linear(x, phi[f"{OUT}.weight"], phi[f"{OUT}.bias"])


def follow(
    phi: Params,
    generate: Callable[[Params], Tensor],
    targets: Tensor,
    *,
    rate: float,
    steps: int,
) -> Params:
    """Return phi after gradient descent on the distance between the terms that it writes and
    where clients came to.

        L = 1/(2 S) sum_i |theta_i(phi) - target_i|^2;    phi <- phi - rate dL/dphi

    With target_i = theta_i + d theta_i, d theta_i the change of a client's term, the first step is
    pFedHN's (Shamsian et al., ICML 2021, section 3): rate mean_i (d theta_i / d phi)^T d theta_i.

    Args:
        phi: what is learned, by name.
        generate: phi -> theta of S clients, (S, n).
        targets: (S, n).
        rate: of the descent.
        steps: of the descent.
    """
    for _ in range(steps):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        with torch.enable_grad():
            loss = (generate(leaves) - targets).square().sum(-1).mean() / 2
            grads = torch.autograd.grad(loss, list(leaves.values()))
        phi = {
            name: tensor.detach() - rate * grad
            for (name, tensor), grad in zip(leaves.items(), grads, strict=True)
        }
    return phi
