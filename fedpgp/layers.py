"""Layers of small networks that each client trains: the weights carry the client axis, as
everything learned does.

A network's tensors stand in a flat dictionary, ``"NAME.weight"`` and
``"NAME.bias"``, as torch names them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]


def linear_start(name: str, outputs: int, inputs: int, rng: np.random.Generator) -> Params:
    """A linear layer as torch starts it: weight and bias uniform in ±1/sqrt(inputs), float64."""
    bound = inputs**-0.5
    return {
        f"{name}.weight": torch.from_numpy(rng.uniform(-bound, bound, (outputs, inputs))),
        f"{name}.bias": torch.from_numpy(rng.uniform(-bound, bound, outputs)),
    }


def attention_start(name: str, width: int, inputs: int, rng: np.random.Generator) -> Params:
    """Multi-head attention from queries (width) to keys and values (inputs) as torch starts it:
    Xavier-uniform projections, the output's weight as a linear layer's, zero biases.

    Where queries and keys are equally wide, torch holds the three projections in one (3 width,
    width) matrix and draws it as such, so the bound is sqrt(6 / (4 width))
    (``torch.nn.MultiheadAttention._reset_parameters``).
    """
    params: Params = {}
    for part, size in (("q", width), ("k", inputs), ("v", inputs)):
        bound = (6 / (4 * width if inputs == width else width + size)) ** 0.5
        params[f"{name}.{part}.weight"] = torch.from_numpy(
            rng.uniform(-bound, bound, (width, size))
        )
        params[f"{name}.{part}.bias"] = torch.zeros(width, dtype=torch.float64)
    params |= linear_start(f"{name}.out", width, width, rng)
    params[f"{name}.out.bias"] = torch.zeros(width, dtype=torch.float64)
    return params


def norm_start(name: str, width: int) -> Params:
    """A layer norm: scale 1, shift 0."""
    ones = torch.ones(width, dtype=torch.float64)
    return {f"{name}.weight": ones, f"{name}.bias": torch.zeros_like(ones)}


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """Each client's own linear layer: x (K, ..., inputs) -> (K, ..., outputs)."""
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    flat = x.reshape(len(x), -1, x.shape[-1]) @ weight.transpose(1, 2)
    if bias is not None:
        flat = flat + bias.unsqueeze(1)
    return flat.view(*x.shape[:-1], -1)


def norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Each client's own layer norm: (K, ..., width) -> (K, ..., width)."""
    shape = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
    return F.layer_norm(x, x.shape[-1:]) * params[f"{name}.weight"].view(shape) + params[
        f"{name}.bias"
    ].view(shape)


def attention(
    params: Params,
    name: str,
    queries: Tensor,
    tokens: Tensor,
    heads: int,
    mask: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Each client's own multi-head attention: queries (K, n, width), keys and values (K, t,
    inputs) -> (K, n, width).

    Args:
        mask: (K, t), True where a token may be attended to.
        values: (K, t, inputs) where they are not the keys' tokens.
    """
    q, k, v = (
        linear(params, f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(-3, -2)
        for part, x in (("q", queries), ("k", tokens), ("v", tokens if values is None else values))
    )
    allowed = None if mask is None else mask[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return linear(params, f"{name}.out", mixed.transpose(-3, -2).flatten(-2))


def gated_start(name: str, width: int, rng: np.random.Generator) -> Params:
    """:func:`gated` at its start; hidden width 4 x width."""
    return {
        **norm_start(f"{name}.norm", width),
        **linear_start(f"{name}.in", 8 * width, width, rng),
        **linear_start(f"{name}.out", width, 4 * width, rng),
    }


def gated(params: Params, name: str, x: Tensor) -> Tensor:
    """Layer norm, linear to twice the hidden width, one half times GELU of the other
    (GEGLU), linear back."""
    value, gate = linear(params, f"{name}.in", norm(params, f"{name}.norm", x)).chunk(2, dim=-1)
    return linear(params, f"{name}.out", value * F.gelu(gate))
