"""The prompted text encoder: exact, prefix-shared, packed, batched over clients.

The sequence of class c is ``[SOS] ctx_1 … ctx_m  name tokens . [EOT]``, padded to 77, and its feature is read at EOT.
Attention is causal, so

* ``[SOS] ctx_1 … ctx_m`` (the prefix) never sees the class name: it is computed once for each context, not once for
  each class;
* nothing after EOT can reach EOT: padding is dropped;
* a class then costs its own few tokens (the suffix), which attend to the shared prefix and to themselves;
* in the first block the suffix does not yet depend on the context: its queries, keys and values are constants;
* in the last block only EOT is read: only its row goes through attention and the MLP.

The suffixes of all classes lie behind the prefix in one packed sequence without padding, ``[prefix | class | class |
…]``, sorted by length so that classes of equal length attend in one batched product. This is algebra, not
approximation: features and gradients equal the full 77-token computation to rounding.

Towers and layouts that cannot share a prefix take the full path (:mod:`fedpgp.full_text`) behind the same call.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip import FrozenCLIP
from fedpgp.errors import FedPGPError, unknown
from fedpgp.full_text import FullSequences

log = logging.getLogger(__name__)

QUICK_GELU = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


@dataclass(frozen=True)
class _Block:
    """One transformer block with the constants folded into its linear layers.

    LayerNorm's scale and shift, the 1/sqrt(head) of the queries and QuickGELU's two factors go into the neighbouring
    weights: exact, and it leaves less to compute and to remember for the backward pass.
    """

    in_weight: Tensor  # (3d, d)
    in_bias: Tensor
    out_weight: Tensor  # (d, d)
    out_bias: Tensor
    fc_weight: Tensor  # (4d, d)
    fc_bias: Tensor
    proj_weight: Tensor  # (d, 4d)
    proj_bias: Tensor


class TextTower:
    """The folded weights of a causal CLIP text tower, in one dtype; shared by all encoders of a model."""

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype):
        text = clip.text_model
        block = text.transformer.resblocks[0]
        self.dtype, self.device = dtype, clip.device
        self.heads = block.attn.num_heads
        self.eps = block.ln_1.eps
        quick = not isinstance(block.mlp.gelu, nn.GELU)
        self.activation = F.silu if quick else F.gelu
        self.blocks = [self._fold(block, QUICK_GELU if quick else 1.0) for block in text.transformer.resblocks]
        if isinstance(text.text_projection, nn.Linear):
            projection, bias = _double(text.text_projection.weight), _double(text.text_projection.bias)
        else:
            projection, bias = _double(text.text_projection).T, 0
        projection, shift = _fold_norm(text.ln_final, projection, 0)
        self.projection, self.projection_bias = (t.to(self.device, dtype) for t in (projection, bias + shift))
        self.embedding = text.token_embedding.weight  # rows are cast when looked up
        self.positions = text.positional_embedding.to(dtype)
        self.width = clip.width
        self.context_length = clip.context_length

    @classmethod
    def of(cls, clip: FrozenCLIP, dtype: torch.dtype | None) -> "TextTower":
        """The tower of this model in this dtype (None: the model's), folded once."""
        towers = clip.__dict__.setdefault("text_towers", {})
        dtype = dtype or clip.dtype
        if dtype not in towers:
            towers[dtype] = cls(clip, dtype)
        return towers[dtype]

    def _fold(self, block: nn.Module, activation_factor: float) -> _Block:
        d = block.attn.embed_dim
        in_weight, in_bias = _fold_norm(block.ln_1, block.attn.in_proj_weight, block.attn.in_proj_bias)
        head_scale = (d // self.heads) ** -0.5
        in_weight[:d] *= head_scale
        in_bias[:d] *= head_scale
        fc_weight, fc_bias = _fold_norm(block.ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        tensors = (
            in_weight,
            in_bias,
            block.attn.out_proj.weight,
            block.attn.out_proj.bias,
            fc_weight * activation_factor,
            fc_bias * activation_factor,
            _double(block.mlp.c_proj.weight) / activation_factor,
            block.mlp.c_proj.bias,
        )
        return _Block(*(tensor.detach().to(self.device, self.dtype) for tensor in tensors))

    def normalize(self, x: Tensor) -> Tensor:
        """LayerNorm without scale and shift (they are folded into what follows)."""
        return F.layer_norm(x, (x.shape[-1],), eps=self.eps)


def _double(tensor: Tensor | None) -> Tensor | int:
    """On the CPU (some devices have no float64); no bias is 0."""
    return 0 if tensor is None else tensor.detach().cpu().double()


def _fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | int) -> tuple[Tensor, Tensor]:
    weight = _double(weight)
    bias = bias if isinstance(bias, int) else _double(bias)
    return weight * _double(norm.weight), bias + weight @ _double(norm.bias)


def why_not_shared(text: nn.Module) -> str | None:
    """Why an open_clip text tower cannot share a prefix; None when it can."""
    from open_clip.transformer import QuickGELU

    blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if blocks is None or not isinstance(getattr(blocks[0], "attn", None), nn.MultiheadAttention):
        return "its blocks are not CLIP's"
    if getattr(text, "attn_mask", None) is None:
        return "it is not causal"
    if pool != "argmax":
        return f"its feature is read at {pool!r}, not at the end-of-text token"
    activation = blocks[0].mlp.gelu
    if not isinstance(activation, QuickGELU) and getattr(activation, "approximate", None) != "none":
        return f"its activation is {activation}"
    if not isinstance(blocks[0].ls_1, nn.Identity) or getattr(text, "cls_emb", None) is not None:
        return "it has layer scales or a class embedding"
    if text.text_projection is None:
        return "it has no text projection"
    return None


@dataclass(frozen=True)
class _Group:
    """Classes whose suffixes have the same number of tokens; consecutive in the packed sequence."""

    length: int
    count: int
    start: int  # of its first token among the suffix tokens


class PromptedTextEncoder:
    """Context vectors -> one unit-norm text feature a class.

    Calling it maps a context (..., n_ctx, width), with any leading axes (clients, prompts, global/personal), to
    features (..., classes, embed). Differentiable in the context; everything else is frozen.

    Args:
        clip: the frozen model.
        class_names: in label order; underscores become spaces.
        n_ctx: number of context vectors, at least 1.
        dtype: of the computation; None is the model's own.
        position: of the class name: ``end`` (the only layout that shares a prefix), ``middle`` or ``front``.
        class_specific: every class has a context of its own; the call then takes (..., classes, n_ctx, width).

    Attributes:
        path: ``"shared prefix"``, or ``"full sequences"`` and why; logged when the encoder is made.

    Raises:
        FedPGPError: a class name that does not fit (names it and the limit, where the tokenizer would cut it silently),
            an unknown position, or a precision other than the model's on the full path.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        n_ctx: int,
        *,
        dtype: torch.dtype | None = None,
        position: str = "end",
        class_specific: bool = False,
    ):
        if position not in ("end", "middle", "front"):
            raise FedPGPError(unknown("class position", position, ["end", "middle", "front"]))
        self.class_names = [name.replace("_", " ") for name in class_names]
        self.n_ctx, self.class_specific = n_ctx, class_specific
        reason = why_not_shared(clip.text_model)
        if position != "end":
            reason = f"the class name stands at the {position}"
        elif class_specific:
            reason = "every class has its own context"
        self.path = f"full sequences ({reason})" if reason else "shared prefix"
        self._encode = FullSequences(clip, self.class_names, n_ctx, position) if reason else None
        log.info("prompted text encoder: %d classes, %s", len(self.class_names), self.path)
        if reason:
            if dtype not in (None, clip.dtype):
                raise FedPGPError(
                    f"dtype={dtype}: this model takes full sequences, in its own {clip.dtype} only ({reason})"
                )
            return
        self.tower = TextTower.of(clip, dtype)
        tokenizer, tower = clip.tokenizer, self.tower
        limit = tower.context_length - n_ctx - 3  # start, full stop, end
        suffixes = []
        for name in self.class_names:
            ids = tokenizer.encode(name + ".")
            if len(ids) - 1 > limit:
                raise FedPGPError(
                    f"class name {name!r} has {len(ids) - 1} tokens; beside {n_ctx} context tokens at most {limit} fit "
                    f"into the model's {tower.context_length}: shorten the name or n_ctx"
                )
            suffixes.append([*ids, tokenizer.eot_token_id])
        self._pack(suffixes)
        sos = torch.tensor([tokenizer.sot_token_id], device=tower.device)
        self._sos = (tower.embedding[sos].to(tower.dtype) + tower.positions[:1]).detach()

    def _pack(self, suffixes: list[list[int]]) -> None:
        """Sorts classes by suffix length and precomputes all that does not depend on the context."""
        tower, device = self.tower, self.tower.device
        self._order = sorted(range(len(suffixes)), key=lambda c: len(suffixes[c]))
        inverse = torch.empty(len(suffixes), dtype=torch.int64)
        inverse[self._order] = torch.arange(len(suffixes))
        self._inverse = inverse.to(device)
        self._groups: list[_Group] = []
        tokens, places, ends = [], [], []
        for c in self._order:
            length = len(suffixes[c])
            if self._groups and self._groups[-1].length == length:
                last = self._groups[-1]
                self._groups[-1] = _Group(length, last.count + 1, last.start)
            else:
                self._groups.append(_Group(length, 1, len(tokens)))
            tokens += suffixes[c]
            places += range(1 + self.n_ctx, 1 + self.n_ctx + length)
            ends.append(1 + self.n_ctx + len(tokens) - 1)
        rows = tower.embedding[torch.tensor(tokens, device=device)].to(tower.dtype)
        self._suffix = (rows + tower.positions[torch.tensor(places, device=device)]).detach()
        self._ends = torch.tensor(ends, device=device)
        first = tower.blocks[0]
        self._suffix_qkv = F.linear(tower.normalize(self._suffix), first.in_weight, first.in_bias).detach()
        self._masks = {
            group.length: torch.full(
                (group.length, group.length), float("-inf"), dtype=tower.dtype, device=device
            ).triu(1)
            for group in self._groups
        }

    @property
    def tokens(self) -> int:
        """Tokens computed for one context: the packed sequence, or all classes' full ones."""
        return 1 + self.n_ctx + len(self._suffix) if self._encode is None else self._encode.tokens.numel()

    def __call__(self, context: Tensor) -> Tensor:
        """(..., n_ctx, width) -> (..., classes, embed), unit norm."""
        own = 3 if self.class_specific else 2
        flat = context.reshape(-1, *context.shape[-own:])
        features = self._shared(flat) if self._encode is None else self._encode(flat)
        return features.reshape(*context.shape[:-own], len(self.class_names), -1)

    def _shared(self, context: Tensor) -> Tensor:
        """(n, n_ctx, width) -> (n, classes, embed) by the shared prefix."""
        tower = self.tower
        context, n = context.to(tower.dtype), len(context)
        prefix = torch.cat(
            [self._sos.expand(n, 1, -1), context + tower.positions[1 : 1 + self.n_ctx]],
            dim=1,
        )
        x = torch.cat([prefix, self._suffix.expand(n, -1, -1)], dim=1)
        first = tower.blocks[0]
        prefix_qkv = F.linear(tower.normalize(prefix), first.in_weight, first.in_bias)
        qkv = torch.cat([prefix_qkv, self._suffix_qkv.expand(n, -1, -1)], dim=1)
        for block in tower.blocks[:-1]:
            if qkv is None:
                qkv = F.linear(tower.normalize(x), block.in_weight, block.in_bias)
            x = self._mlp(block, x + F.linear(self._attend(qkv), block.out_weight, block.out_bias))
            qkv = None
        last = tower.blocks[-1]
        if qkv is None:
            qkv = F.linear(tower.normalize(x), last.in_weight, last.in_bias)
        attended = self._attend_at_ends(qkv)
        x = self._mlp(last, x[:, self._ends] + F.linear(attended, last.out_weight, last.out_bias))
        features = F.normalize(F.linear(tower.normalize(x), tower.projection, tower.projection_bias), dim=-1)
        return features[:, self._inverse]

    def _mlp(self, block: _Block, x: Tensor) -> Tensor:
        hidden = self.tower.activation(F.linear(self.tower.normalize(x), block.fc_weight, block.fc_bias))
        return x + F.linear(hidden, block.proj_weight, block.proj_bias)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, tokens, width = qkv.shape
        q, k, v = qkv.view(n, tokens, 3, self.tower.heads, width // (3 * self.tower.heads)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention of every token: (n, tokens, 3d) -> (n, tokens, d)."""
        q, k, v = self._heads(qkv)
        p = 1 + self.n_ctx
        prefix = F.scaled_dot_product_attention(q[:, :, :p], k[:, :, :p], v[:, :, :p], is_causal=True, scale=1.0)
        suffix = [prefix]
        for group in self._groups:
            rows = slice(p + group.start, p + group.start + group.count * group.length)
            own = (group.count, group.length)
            suffix.append(self._attend_group(q[:, :, rows], k, v, rows, own, self._masks[group.length]))
        return torch.cat(suffix, dim=2).transpose(1, 2).flatten(2)

    def _attend_at_ends(self, qkv: Tensor) -> Tensor:
        """Attention of the EOT tokens alone: (n, tokens, 3d) -> (n, classes, d), classes in packed order."""
        q, k, v = self._heads(qkv)
        p, done, parts = 1 + self.n_ctx, 0, []
        for group in self._groups:
            rows = slice(p + group.start, p + group.start + group.count * group.length)
            ends = self._ends[done : done + group.count]
            parts.append(self._attend_group(q[:, :, ends], k, v, rows, (group.count, group.length), None))
            done += group.count
        return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)

    def _attend_group(
        self, q: Tensor, k: Tensor, v: Tensor, rows: slice, own: tuple[int, int], mask: Tensor | None
    ) -> Tensor:
        """Queries of one group against the shared prefix and against their own class: one softmax over both.

        ``q`` is (n, heads, count * queries a class, head), ``own`` = (count, length) of the group, ``rows`` its keys.
        """
        n, heads, queries, size = q.shape
        p = 1 + self.n_ctx
        own_k, own_v = (t[:, :, rows].reshape(n, heads, *own, size) for t in (k, v))
        per_class = q.reshape(n, heads, own[0], queries // own[0], size)
        to_own = per_class @ own_k.transpose(-1, -2)
        if mask is not None:
            to_own = to_own + mask
        to_prefix = (q @ k[:, :, :p].transpose(-1, -2)).view(n, heads, own[0], queries // own[0], p)
        shares = torch.cat([to_prefix, to_own], dim=-1).softmax(-1)
        from_prefix = shares[..., :p].reshape(n, heads, queries, p) @ v[:, :, :p]
        return from_prefix + (shares[..., p:] @ own_v).view(n, heads, queries, size)
