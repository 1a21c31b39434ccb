"""Packed and padded attention against softmax attention of every token in a loop,
values and gradients."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.towers.packed_attention import Group, Packing
from fedpgp.towers.padded_attention import PaddedAttention

PREFIX, HEADS, SIZE = 3, 2, 4
LENGTHS = [1, 2, 2, 4]
PACKING = Packing(PREFIX, HEADS, (Group(1, 1, 0, 0), Group(2, 2, 1, 1), Group(4, 1, 5, 3)))
PADDED = PaddedAttention(PREFIX, HEADS, LENGTHS, torch.float64, torch.device("cpu"))
TOKENS = PREFIX + sum(LENGTHS)


def visible(token: int) -> list[int]:
    """Positions that a token sees."""
    if token < PREFIX:
        return list(range(token + 1))
    start = PREFIX
    for length in LENGTHS:
        if token < start + length:
            return [*range(PREFIX), *range(start, token + 1)]
        start += length
    raise AssertionError


def slow(qkv: torch.Tensor) -> torch.Tensor:
    """(n, tokens, 3d) -> (n, tokens, d), one token and head at a time."""
    d = HEADS * SIZE
    q, k, v = (part.unflatten(-1, (HEADS, SIZE)) for part in qkv.split(d, dim=-1))
    rows = []
    for token in range(TOKENS):
        seen = visible(token)
        shares = torch.einsum("nhs,nths->nht", q[:, token], k[:, seen]).softmax(-1)
        rows.append(torch.einsum("nht,nths->nhs", shares, v[:, seen]).flatten(1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("attend", [PACKING.attend, PADDED.attend], ids=["packed", "padded"])
@pytest.mark.parametrize("n", [1, 3])
def test_every_token(attend, n):
    qkv = torch.randn(n, TOKENS, 3 * HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(n, TOKENS, HEADS * SIZE, dtype=torch.float64)
    ours, theirs = attend(qkv), slow(qkv)
    assert_close(ours, theirs, rtol=0, atol=1e-13)
    (our_grad,) = torch.autograd.grad((ours * weights).sum(), qkv)
    (their_grad,) = torch.autograd.grad((theirs * weights).sum(), qkv)
    assert_close(our_grad, their_grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "attend", [PACKING.attend_at_ends, PADDED.attend_at_ends], ids=["packed", "padded"]
)
@pytest.mark.parametrize("n", [1, 3])
def test_the_ends_alone(attend, n):
    qkv = torch.randn(n, TOKENS, 3 * HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    ends = [3, 5, 7, 11]
    d = HEADS * SIZE
    weights = torch.randn(n, len(ends), d, dtype=torch.float64)
    ours, theirs = attend(qkv[:, ends, :d], qkv[..., d:]), slow(qkv)[:, ends]
    assert_close(ours, theirs, rtol=0, atol=1e-13)
    (our_grad,) = torch.autograd.grad((ours * weights).sum(), qkv)
    (their_grad,) = torch.autograd.grad((theirs * weights).sum(), qkv)
    assert_close(our_grad, their_grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ends", [None, [3, 5, 7, 11]], ids=["every token", "the ends alone"])
def test_bfloat16_is_rounded_when_it_is_read_and_written_only(ends):
    torch.manual_seed(0)
    d, rows = HEADS * SIZE, slice(None) if ends is None else ends
    qkv = torch.randn(8, TOKENS, 3 * d).bfloat16().requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    if ends is None:
        ours = PACKING.attend(qkv)
    else:
        ours = PACKING.attend_at_ends(qkv[:, ends, :d], qkv[..., d:])
    theirs = slow(exact)[:, rows]
    weights = torch.randn(theirs.shape).bfloat16()
    (our_grad,) = torch.autograd.grad((ours * weights).sum(), qkv)
    (their_grad,) = torch.autograd.grad((theirs * weights).sum(), exact)
    assert ours.dtype == our_grad.dtype == torch.bfloat16
    for near, true in ((ours, theirs), (our_grad, their_grad)):
        assert (near - true).norm() < 3e-3 * true.norm()
