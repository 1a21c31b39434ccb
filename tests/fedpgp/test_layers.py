"""Layers of the small networks start as torch starts its own: the same bounds, tensor by tensor."""

import numpy as np
import pytest
import torch

from fedpgp.layers import attention_start, linear_start, norm_start

WIDTH = 96


def spread(tensor: torch.Tensor) -> tuple[float, float]:
    return tensor.abs().max().item(), tensor.double().std().item()


@pytest.mark.parametrize("inputs", [WIDTH, 2 * WIDTH])
def test_attention_starts_as_torch_starts_it(inputs):
    """Packed projections where queries and keys are equally wide, separate ones elsewhere."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(WIDTH, 4, kdim=inputs, vdim=inputs)
    packed = theirs.in_proj_weight
    parts = (
        packed.chunk(3)
        if packed is not None
        else [getattr(theirs, f"{p}_proj_weight") for p in "qkv"]
    )
    ours = attention_start("a", WIDTH, inputs, np.random.default_rng(0))
    for part, weight in zip((*"qkv", "out"), (*parts, theirs.out_proj.weight), strict=True):
        assert ours[f"a.{part}.weight"].shape == weight.shape
        assert spread(ours[f"a.{part}.weight"]) == pytest.approx(spread(weight), rel=0.03), part
    assert not any(ours[f"a.{part}.bias"].any() for part in (*"qkv", "out"))
    assert not theirs.in_proj_bias.any() and not theirs.out_proj.bias.any()


def test_linear_layers_and_norms_start_as_torch_starts_them():
    torch.manual_seed(0)
    theirs, ours = (
        torch.nn.Linear(WIDTH, 2000),
        linear_start("l", 2000, WIDTH, np.random.default_rng(0)),
    )
    for what in ("weight", "bias"):
        assert spread(ours[f"l.{what}"]) == pytest.approx(
            spread(getattr(theirs, what)), rel=0.03
        ), what
    theirs, ours = torch.nn.LayerNorm(WIDTH), norm_start("n", WIDTH)
    for what in ("weight", "bias"):
        assert torch.equal(ours[f"n.{what}"], getattr(theirs, what).double())
