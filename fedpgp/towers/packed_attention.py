"""Attention over a packed sequence ``[prefix | class | class | …]``: every class
sees the prefix and itself.

Autograd would record dozens of slices and give each a zero-filled gradient of the whole sequence;
here forward and backward are written out over contiguous pieces, one a class length, so that what
is left is matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Group:
    """Classes with the same number of tokens, one behind the other in the packed sequence.

    Attributes:
        length: tokens of each class.
        count: classes.
        start: position of the first one's first token, behind the prefix.
        first: number of the first one, in packed order.
    """

    length: int
    count: int
    start: int
    first: int

    @property
    def tokens(self) -> slice:
        """Its positions behind the prefix."""
        return slice(self.start, self.start + self.count * self.length)

    @property
    def classes(self) -> slice:
        """Its classes, in packed order."""
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True)
class Packing:
    """How one sequence is packed.

    Attributes:
        prefix: tokens that every class sees.
        heads: attention heads.
        groups: the classes by length.
        padding: tokens added to the sequence: none.
    """

    prefix: int
    heads: int
    groups: Sequence[Group]
    padding: ClassVar[int] = 0

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention of every token: (n, tokens, 3d), queries scaled already -> (n, tokens, d)."""
        return _Attention.apply(self, qkv, None)

    def attend_at_ends(self, queries: Tensor, kv: Tensor) -> Tensor:
        """Attention of each class's last token alone: queries (n, C, d) in packed order, kv (n,
        tokens, 2d) -> (n, C, d)."""
        return _Attention.apply(self, kv, queries)


def _split(x: Tensor, count: int, length: int, parts: int, heads: int) -> Tensor:
    """(n, count * length, parts * d) -> contiguous (parts, n * heads, count * length, d / heads).

    On a CPU bfloat16 becomes float32 on the way: products of a few tokens are faster in it.
    """
    n = len(x)
    heads_first = x.reshape(n, count * length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        heads_first = heads_first.to(torch.float32, memory_format=torch.contiguous_format)
    return heads_first.contiguous().view(parts, n * heads, count * length, -1)


def _join(x: Tensor, into: Tensor) -> None:
    """Writes (parts, n * heads, tokens, d / heads) back to (n, tokens, parts * d), in the precision
    of the latter."""
    parts, _, tokens, size = x.shape
    n = len(into)
    into.unflatten(-1, (parts, -1, size)).copy_(
        x.view(parts, n, -1, tokens, size).permute(1, 3, 0, 2, 4)
    )


class _Attention(torch.autograd.Function):
    """Softmax attention of the prefix (causal) and of each class over the prefix and itself
    (causal).

    With ``queries`` only the last token of each class asks, and ``tensor`` holds keys and values
    alone.
    """

    @staticmethod
    def forward(ctx, packing: Packing, tensor: Tensor, queries: Tensor | None) -> Tensor:
        heads, p = packing.heads, packing.prefix
        n, parts = len(tensor), 3 if queries is None else 2
        saved: list[Tensor] = []
        *q, k_prefix, v_prefix = _split(tensor[:, :p], 1, p, parts, heads).unbind()
        saved += [k_prefix, v_prefix]
        if queries is None:
            out = tensor.new_empty(n, tensor.shape[1], tensor.shape[2] // 3)
            scores = q[0] @ k_prefix.transpose(-1, -2)
            probs = scores.masked_fill_(_future(p, scores), float("-inf")).softmax(-1)
            _join((probs @ v_prefix).unsqueeze(0), out[:, :p])
            saved += [q[0], probs]
        else:
            out = torch.empty_like(queries)
        for group in packing.groups:
            rows = slice(p + group.tokens.start, p + group.tokens.stop)
            *q, k, v = _split(tensor[:, rows], group.count, group.length, parts, heads).unbind()
            asking = group.length if q else 1
            q = q[0] if q else _split(queries[:, group.classes], group.count, 1, 1, heads)[0]
            each = len(q) * group.count  # one class of one head
            self_scores = q.view(each, asking, -1) @ k.view(each, group.length, -1).transpose(
                -1, -2
            )
            if asking > 1:
                self_scores.masked_fill_(_future(group.length, self_scores), float("-inf"))
            prefix_scores = q @ k_prefix.transpose(-1, -2)
            probs = torch.cat(
                [prefix_scores, self_scores.view(len(q), group.count * asking, -1)], dim=-1
            ).softmax(-1)
            answer = probs[..., :p] @ v_prefix
            self_probs = probs[..., p:].view(each, asking, group.length)
            answer.view(each, asking, -1).baddbmm_(self_probs, v.view(each, group.length, -1))
            _join(answer.unsqueeze(0), out[:, rows] if queries is None else out[:, group.classes])
            saved += [q, k, v, probs]
        ctx.packing, ctx.alone = packing, queries is not None
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, Tensor | None]:
        packing, saved = ctx.packing, list(ctx.saved_tensors)
        heads, p, n = packing.heads, packing.prefix, len(grad)
        k_prefix, v_prefix = saved[:2]
        tokens = p + sum(group.count * group.length for group in packing.groups)
        parts = 2 if ctx.alone else 3
        d_tensor = grad.new_empty(n, tokens, parts * grad.shape[-1])
        d_queries = torch.empty_like(grad) if ctx.alone else None
        if ctx.alone:
            # Made of the gradient: several of them may come at once (torch.func.vmap).
            d_prefix = grad.new_zeros(2, *k_prefix.shape, dtype=k_prefix.dtype)
            groups = saved[2:]
        else:
            q, probs = saved[2:4]
            d = _split(grad[:, :p], 1, p, 1, heads)[0]
            d_scores = _softmax_backward(d @ v_prefix.transpose(-1, -2), probs)
            d_prefix = torch.stack(
                [d_scores @ k_prefix, d_scores.transpose(-1, -2) @ q, probs.transpose(-1, -2) @ d]
            )
            groups = saved[4:]
        for i, group in enumerate(packing.groups):
            q, k, v, probs = groups[4 * i : 4 * i + 4]
            rows = slice(p + group.tokens.start, p + group.tokens.stop)
            asking = 1 if ctx.alone else group.length
            each = len(q) * group.count
            d = _split(
                grad[:, group.classes if ctx.alone else rows], group.count, asking, 1, heads
            )[0]
            d_self_probs = d.view(each, asking, -1) @ v.view(each, group.length, -1).transpose(
                -1, -2
            )
            d_prefix_probs = d @ v_prefix.transpose(-1, -2)
            d_probs = torch.cat(
                [d_prefix_probs, d_self_probs.view(len(q), group.count * asking, -1)], dim=-1
            )
            d_scores = _softmax_backward(d_probs, probs)
            d_prefix_scores, d_self_scores = (
                d_scores[..., :p],
                d_scores[..., p:].view(each, asking, group.length),
            )
            d_q = d_prefix_scores @ k_prefix
            d_q = torch.baddbmm(
                d_q.view(each, asking, -1), d_self_scores, k.view(each, group.length, -1)
            ).view_as(d_q)
            d_prefix[-2] = torch.baddbmm(d_prefix[-2], d_prefix_scores.transpose(-1, -2), q)
            d_prefix[-1] = torch.baddbmm(d_prefix[-1], probs[..., :p].transpose(-1, -2), d)
            d_k = d_self_scores.transpose(-1, -2) @ q.view(each, asking, -1)
            self_probs = probs[..., p:].view(each, asking, group.length)
            d_v = self_probs.transpose(-1, -2) @ d.view(each, asking, -1)
            pieces = [d_k.view_as(k), d_v.view_as(v)]
            if ctx.alone:
                _join(d_q.unsqueeze(0), d_queries[:, group.classes])
            else:
                pieces.insert(0, d_q)
            for part, piece in enumerate(pieces):
                width = grad.shape[-1]
                _join(piece.unsqueeze(0), d_tensor[:, rows, part * width : (part + 1) * width])
        _join(d_prefix, d_tensor[:, :p])
        return None, d_tensor, d_queries


def _future(length: int, like: Tensor) -> Tensor:
    """True where a token would look at a later one, (length, length)."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)


def _softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    return torch._softmax_backward_data(grad, probs, -1, probs.dtype)
