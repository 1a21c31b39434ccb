"""The attention of :mod:`fedpgp.towers.packed_attention` in few, large kernels: what a GPU wants.

There, the number of kernels counts and how evenly memory is laid out, not a few more tokens. Here
all classes are as long as the longest one, in attention alone (linear layers see the packed
sequence), and the prefix stands among them as classes that look at the prefix only. One batched
product is then the whole sequence against the prefix, one every class against itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PaddedAttention:
    """Softmax attention of the prefix (causal) and of each class over the prefix and itself
    (causal).

    Args:
        prefix: tokens that every class sees.
        heads: attention heads.
        lengths: tokens of each class, in packed order.
        dtype, device: of what will attend.

    Attributes:
        padding: tokens added to the sequence.
    """

    def __init__(
        self,
        prefix: int,
        heads: int,
        lengths: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ):
        even = (
            16 // dtype.itemsize
        )  # numbers in 16 bytes: rows that begin there multiply many times faster
        self.heads, self.length = heads, -(-max(lengths) // even) * even
        ahead = -(-prefix // self.length)  # classes that the prefix takes
        self.prefix, self.classes = ahead * self.length, ahead + len(lengths)
        self.padding = self.classes * self.length - prefix - sum(lengths)
        lengths_of = torch.tensor([0] * ahead + list(lengths)).unsqueeze(1)
        token = torch.arange(self.length)
        there = (token < lengths_of).flatten()
        there[:prefix] = True
        to_prefix = torch.arange(self.prefix)
        hidden = torch.ones(self.classes * self.length, self.prefix + self.length, dtype=torch.bool)
        hidden[:, :prefix] = False
        hidden[:prefix, :prefix] = to_prefix[:prefix] > to_prefix[:prefix].unsqueeze(1)
        hidden[self.prefix :, self.prefix :] = (token > token.unsqueeze(1)).repeat(len(lengths), 1)
        ends = torch.cat(
            [(to_prefix >= prefix).expand(self.classes, -1), token >= lengths_of], dim=1
        )
        self.places = there.nonzero().squeeze(1).to(device)
        # Where each padded token comes from; one that is none is a copy of its neighbour
        # and looked at by nobody.
        self.sources = (there.cumsum(0) - 1).clamp(min=0).to(device)
        self.ends = (ahead + torch.arange(len(lengths))).to(device)
        self.end_sources = (torch.arange(self.classes) - ahead).clamp(min=0).to(device)
        self.hidden, self.hidden_from_ends = hidden.to(device), ends.to(device)

    def attend(self, qkv: Tensor) -> Tensor:
        """As :meth:`fedpgp.towers.packed_attention.Packing.attend`."""
        return _Attention.apply(self, qkv, None)

    def attend_at_ends(self, queries: Tensor, kv: Tensor) -> Tensor:
        """As :meth:`fedpgp.towers.packed_attention.Packing.attend_at_ends`."""
        return _Attention.apply(self, kv, queries)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, how: PaddedAttention, tensor: Tensor, queries: Tensor | None) -> Tensor:
        p, heads = how.prefix, how.heads
        *q, k, v = _heads(tensor.index_select(1, how.sources), 3 if queries is None else 2, heads)
        if queries is None:
            (q,), hidden, places = q, how.hidden, how.places
        else:
            (q,) = _heads(queries.index_select(1, how.end_sources), 1, heads)
            hidden, places = how.hidden_from_ends, how.ends
        each = len(k) * how.classes  # one class of one head
        k_self, v_self = k.view(each, how.length, -1), v.view(each, how.length, -1)
        self_scores = (q.view(each, -1, q.shape[-1]) @ k_self.mT).view(*q.shape[:2], -1)
        scores = torch.cat([q @ k[:, :p].mT, self_scores], dim=-1)
        probs = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
        answer = probs[..., :p] @ v[:, :p]
        answer.view(each, -1, q.shape[-1]).baddbmm_(
            probs[..., p:].view(each, -1, how.length), v_self
        )
        ctx.how, ctx.alone = how, queries is not None
        ctx.save_for_backward(q, k, v, probs)
        return _tokens([answer], heads).index_select(1, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, Tensor | None]:
        how, (q, k, v, probs) = ctx.how, ctx.saved_tensors
        p, each, size = how.prefix, len(k) * how.classes, q.shape[-1]
        q_self, k_self, v_self = (x.view(each, -1, size) for x in (q, k, v))
        whole = grad.new_zeros(len(grad), q.shape[1], grad.shape[-1])
        (d,) = _heads(
            whole.index_copy_(1, how.ends if ctx.alone else how.places, grad), 1, how.heads
        )
        d_self = d.view(each, -1, size)
        d_probs = torch.cat([d @ v[:, :p].mT, (d_self @ v_self.mT).view(*q.shape[:2], -1)], dim=-1)
        d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
        d_prefix_scores, d_self_scores = (
            d_scores[..., :p],
            d_scores[..., p:].view(each, -1, how.length),
        )
        d_q = d_prefix_scores @ k[:, :p]
        d_q.view(each, -1, size).baddbmm_(d_self_scores, k_self)
        d_k = (d_self_scores.mT @ q_self).view_as(k)
        d_v = (probs[..., p:].view(each, -1, how.length).mT @ d_self).view_as(v)
        d_k[:, :p].baddbmm_(d_prefix_scores.mT, q)
        d_v[:, :p].baddbmm_(probs[..., :p].mT, d)
        if ctx.alone:
            d_queries = _tokens([d_q], how.heads).index_select(1, how.ends)
            return None, _tokens([d_k, d_v], how.heads).index_select(1, how.places), d_queries
        return None, _tokens([d_q, d_k, d_v], how.heads).index_select(1, how.places), None


def _heads(x: Tensor, parts: int, heads: int) -> Sequence[Tensor]:
    """(n, tokens, parts * d) -> each part contiguous, (n * heads, tokens, d / heads)."""
    x = x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
    return x.flatten(1, 2).unbind()


def _tokens(parts: Sequence[Tensor], heads: int) -> Tensor:
    """Parts (n * heads, tokens, d / heads) -> (n, tokens, parts * d)."""
    n, (_, tokens, size) = len(parts[0]) // heads, parts[0].shape
    whole = parts[0].new_empty(n, tokens, len(parts), heads, size)
    for i, part in enumerate(parts):
        whole[:, :, i].copy_(part.view(n, heads, tokens, size).transpose(1, 2))
    return whole.flatten(2)
