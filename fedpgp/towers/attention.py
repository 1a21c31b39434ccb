"""Which attention a packed sequence gets."""

from collections.abc import Sequence

import torch

from fedpgp.towers.packed_attention import Group, Packing
from fedpgp.towers.padded_attention import PaddedAttention
from fedpgp.towers.triton_attention import TritonAttention

PADS = ("cuda",)
"""Kinds of devices on which classes are padded to one length inside attention."""

KINDS = ("padded", "packed", "triton")

Attention = Packing | PaddedAttention | TritonAttention


def attention_of(
    kind: str | None,
    prefix: int,
    heads: int,
    width: int,
    groups: Sequence[Group],
    dtype: torch.dtype,
    device: torch.device,
) -> Attention:
    """Return the attention over a prefix and classes.

    Args:
        kind: of :data:`KINDS`; None: packed, and on a GPU padded unless that more than doubles the
            tokens (one long name among short ones would cost all of them).
        prefix: tokens that every class sees.
        heads: attention heads.
        width: of all heads together.
        groups: the classes by length.
        dtype, device: of what will attend.

    Raises:
        FedPGPError: ``triton`` where its kernels cannot run.
    """
    lengths = [group.length for group in groups for _ in range(group.count)]
    if kind == "triton":
        return TritonAttention(prefix, heads, width, lengths, dtype, device)
    if kind == "padded" or (kind is None and device.type in PADS):
        padded = PaddedAttention(prefix, heads, lengths, dtype, device)
        if kind == "padded" or padded.padding <= prefix + sum(lengths):
            return padded
    return Packing(prefix, heads, tuple(groups))
