"""The prompted text encoder: exact, prefix-shared, packed, batched over clients.

The sequence of class c is ``[SOS] ctx_1 … ctx_m  name tokens . [EOT]``, padded to 77, and its
feature is read at EOT. Attention is causal, so

* ``[SOS] ctx_1 … ctx_m`` (the prefix) never sees the class name: it is computed once for each
  context, not once for each class;
* nothing after EOT can reach EOT: padding is dropped;
* a class then costs its own few tokens (the suffix), which attend to the shared
  prefix and to themselves;
* in the first block the suffix does not yet depend on the context: its queries, keys
  and values are constants;
* in the last block only EOT is read: only its row goes through attention and the MLP.

The suffixes of all classes lie behind the prefix in one packed sequence without padding,
``[prefix | class | class | …]``, sorted by length so that classes of equal length attend in one
batched product. This is algebra, not
approximation: features and gradients equal the full 77-token computation to rounding.

Towers and layouts that cannot share a prefix take the full path
(:mod:`fedpgp.text.full_sequence`) behind the same call.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.model import FrozenCLIP
from fedpgp.errors import FedPGPError, unknown
from fedpgp.text.full_sequence import FullSequences
from fedpgp.towers.attention import attention_of
from fedpgp.towers.folded import Block, linear
from fedpgp.towers.packed_attention import Group
from fedpgp.towers.text import TextTower, why_not_shared

log = logging.getLogger(__name__)


def _why_not_shared(clip: FrozenCLIP) -> str | None:
    reason = why_not_shared(clip.text_model)
    if reason is None and not clip.reader.is_plain():
        return "its tokenizer does not read words one by one between a start and an end token"
    return reason


class PromptedTextEncoder:
    """Context vectors -> one unit-norm text feature a class.

    Calling it maps a context (..., m, d), with any leading axes (clients, prompts,
    global/personal), to features (..., C, e). Differentiable in the context;
    everything else is frozen.

    Args:
        clip: the frozen model.
        class_names: in label order; underscores become spaces.
        n_ctx: m, number of context vectors, at least 1.
        dtype: of contexts and features; None is the model's own.
        compute: of the matrix products; None is ``dtype``, ``torch.bfloat16`` is faster and
            inexact.
        position: of the class name: ``end`` (the only layout that shares a prefix),
            ``middle`` or ``front``.
        class_specific: every class has a context of its own; the call then takes (..., C, m, d).

    Attributes:
        path: ``"shared prefix"``, or ``"full sequences"`` and why; logged when the encoder is made.
        checkpointing: keep only each block's input for the backward pass and compute the rest
            again: about a fifth of the memory for a third more time.
        groups: the packed classes by length, of a shared prefix.

    Raises:
        FedPGPError: a class name that does not fit (names it and the limit, where the
            tokenizer would cut it silently), an unknown position, or a precision other than
            the model's on the full path.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        n_ctx: int,
        *,
        dtype: torch.dtype | None = None,
        compute: torch.dtype | None = None,
        position: str = "end",
        class_specific: bool = False,
    ):
        if position not in ("end", "middle", "front"):
            raise FedPGPError(unknown("class position", position, ["end", "middle", "front"]))
        self.class_names = [name.replace("_", " ") for name in class_names]
        self.n_ctx, self.class_specific = n_ctx, class_specific
        reason = clip.cached("why not shared", lambda: _why_not_shared(clip))
        if position != "end":
            reason = f"the class name stands at the {position}"
        elif class_specific:
            reason = "every class has its own context"
        self.path = f"full sequences ({reason})" if reason else "shared prefix"
        self.checkpointing = False
        self._encode = FullSequences(clip, self.class_names, n_ctx, position) if reason else None
        self._options = (clip, n_ctx, dtype, compute, position, class_specific)
        self._parts: dict[tuple[int, ...], PromptedTextEncoder] = {}
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}
        log.info("prompted text encoder: %d classes, %s", len(self.class_names), self.path)
        if reason:
            if {dtype, compute} - {None, clip.dtype}:
                raise FedPGPError(
                    f"dtype={compute or dtype}: this model takes full sequences, in its own "
                    f"{clip.dtype} only ({reason}); use dtype=float32"
                )
            return
        self.tower = TextTower.of(clip, dtype, compute)
        tower, (start, end) = self.tower, clip.special_tokens
        limit = tower.context_length - n_ctx - 3  # start, full stop, end
        suffixes = []
        for name in self.class_names:
            ids = clip.token_ids(name + ".")
            if len(ids) - 1 > limit:
                raise FedPGPError(
                    f"class name {name!r} has {len(ids) - 1} tokens; beside {n_ctx} context "
                    f"tokens at most {limit} fit into the model's {tower.context_length}: "
                    "shorten the name or n_ctx"
                )
            suffixes.append([*ids, end])
        self._pack(clip, suffixes)
        self._sos = (clip.embed_tokens([start]).to(tower.dtype) + tower.positions[:1]).detach()

    def _pack(self, clip: FrozenCLIP, suffixes: list[list[int]]) -> None:
        """Sorts classes by suffix length and precomputes all that does not depend on the
        context."""
        tower, device = self.tower, self.tower.device
        order = sorted(range(len(suffixes)), key=lambda c: len(suffixes[c]))
        inverse = torch.empty(len(suffixes), dtype=torch.int64)
        inverse[order] = torch.arange(len(suffixes))
        self._inverse = inverse.to(device)
        groups: list[Group] = []
        tokens, places, ends = [], [], []
        for first, c in enumerate(order):
            length = len(suffixes[c])
            if groups and groups[-1].length == length:
                groups[-1] = replace(groups[-1], count=groups[-1].count + 1)
            else:
                groups.append(Group(length, 1, len(tokens), first))
            tokens += suffixes[c]
            places += range(1 + self.n_ctx, 1 + self.n_ctx + length)
            ends.append(1 + self.n_ctx + len(tokens) - 1)
        self.groups = tuple(groups)
        self._attention = attention_of(
            *(tower.attention, 1 + self.n_ctx, tower.heads, tower.width),
            *(self.groups, tower.compute, device),
        )
        rows = clip.embed_tokens(tokens).to(tower.dtype)
        self._suffix = (rows + tower.positions[torch.tensor(places, device=device)]).detach()
        self._ends = torch.tensor(ends, device=device)
        first_block = tower.blocks[0]
        self._suffix_qkv = linear(
            tower.normalize(self._suffix), first_block.in_weight, first_block.in_bias
        ).detach()

    @property
    def tokens(self) -> int:
        """Tokens computed for one context: the packed sequence, or all classes' full ones."""
        return (
            1 + self.n_ctx + len(self._suffix)
            if self._encode is None
            else self._encode.tokens.numel()
        )

    @property
    def padding(self) -> int:
        """Tokens that stand beside them in attention alone."""
        return self._attention.padding if self._encode is None else 0

    def __call__(self, context: Tensor, subset: Tensor | None = None) -> Tensor:
        """(..., m, d) -> (..., C, e), unit norm.

        Args:
            context: with any leading axes.
            subset: bool, broadcastable to (..., C): the classes each context is asked for. The
                others cost nothing and their features are zero. None asks for all.
        """
        dims = 3 if self.class_specific else 2
        leading = context.shape[:-dims]
        flat = context.reshape(-1, *context.shape[-dims:])
        if subset is None:
            features = self._features(flat)
        else:
            wanted = subset.expand(*leading, len(self.class_names)).reshape(len(flat), -1)
            features = self._of_subsets(flat, wanted)
        return features.reshape(*leading, len(self.class_names), -1)

    def raw(self, context: Tensor) -> Tensor:
        """As the call for all classes, but the features are as long as the text tower makes
        them."""
        flat = context.reshape(-1, *context.shape[-2:])
        features = (
            self._shared(flat, unit=False)
            if self._encode is None
            else self._encode(flat, unit=False)
        )
        return features.reshape(*context.shape[:-2], len(self.class_names), -1)

    def encode_deep(
        self,
        contexts: Tensor,
        adapter: Callable[[int, Tensor], Tensor | None] | None = None,
        first: int = 0,
    ) -> Tensor:
        """Return features under contexts of several blocks: (n, depth, m, d) -> (n, C, e).

        The first is the context; at the input of block l < depth the context's states are replaced
        by the l-th. They never see a class name either, so the prefix is still shared.

        Args:
            adapter: ``adapter(l, x)`` is added to the output of block l (from 0); x (n, tokens,
                d) is its input (in the last block the end tokens' rows alone), each token by
                itself. None adds nothing.
            first: the block (from 0) of the first adapter. Where it is not 0, the contexts are
                one that is not learned, n times: the blocks before it run once.

        Raises:
            FedPGPError: a model that takes full sequences.
        """
        if self._encode is not None:
            raise FedPGPError(
                f"prompts and adapters inside the text tower need a shared prefix: {self.path}"
            )
        if adapter is None:
            args = contexts[:, 0], contexts[:, 1:]
            if self.checkpointing:
                return self._in_chunks(*args)
            return self.tower.graphs.record_more(self, self._in_chunks, *args)
        return self._shared(contexts[:, 0], contexts[:, 1:], adapter, first=first)

    def _features(self, context: Tensor) -> Tensor:
        if self._encode is not None:
            return self._encode(context)
        if self.checkpointing:
            return self._in_chunks(context)
        return self.tower.graphs(self, self._in_chunks, context)

    def _in_chunks(self, context: Tensor, deep_contexts: Tensor | None = None) -> Tensor:
        """Run :meth:`_shared` in chunks where one pass would be too large (on a CPU)."""
        size = self.tower.chunk_size(len(context), self.tokens)
        if len(context) <= size:
            return self._shared(context, deep_contexts)
        chunks = [x.split(size) for x in (context, deep_contexts) if x is not None]
        return torch.cat([self._shared(*chunk) for chunk in zip(*chunks, strict=True)])

    def _of_subsets(self, context: Tensor, wanted: Tensor) -> Tensor:
        """Contexts that ask for the same classes go through together, by an encoder
        of those classes alone."""
        kinds, kind_of = torch.unique(wanted, dim=0, return_inverse=True)
        rows, parts = [], []
        for i, kind in enumerate(kinds):
            ids = kind.nonzero().squeeze(1)
            if not len(ids):
                raise FedPGPError(
                    "a context is asked for no class at all: its client has no class to choose"
                )
            rows.append((kind_of == i).nonzero().squeeze(1))
            chosen = context[rows[-1]][:, ids] if self.class_specific else context[rows[-1]]
            found = self._only(tuple(ids.tolist()))._features(chosen)
            whole = found.new_zeros(len(found), len(self.class_names), found.shape[-1])
            parts.append(whole.index_copy(1, ids, found))
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _only(self, ids: tuple[int, ...]) -> "PromptedTextEncoder":
        """The encoder of these classes, made once."""
        if len(ids) == len(self.class_names):
            return self
        if ids not in self._parts:
            clip, n_ctx, dtype, compute, position, class_specific = self._options
            names = [self.class_names[i] for i in ids]
            self._parts[ids] = PromptedTextEncoder(
                clip,
                names,
                n_ctx,
                dtype=dtype,
                compute=compute,
                position=position,
                class_specific=class_specific,
            )
        self._parts[ids].checkpointing = self.checkpointing
        return self._parts[ids]

    def _shared(
        self,
        context: Tensor,
        deep_contexts: Tensor | None = None,
        adapter: Callable[[int, Tensor], Tensor | None] | None = None,
        unit: bool = True,
        first: int = 0,
    ) -> Tensor:
        """(n, m, d) -> (n, C, e) by the shared prefix, of unit norm or as the text tower makes
        them; the rest as :meth:`encode_deep` has it."""
        x = self._before(context, first) if first else self._packed(context)
        for i, (run, block) in list(enumerate(self._runs()))[first:]:
            if deep_contexts is not None and 0 < i <= deep_contexts.shape[1]:
                x = torch.cat(
                    [x[:, :1], deep_contexts[:, i - 1].to(x.dtype), x[:, 1 + self.n_ctx :]], dim=1
                )
            before = x
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, block, x, use_reentrant=False)
            else:
                x = run(block, x)
            if adapter is not None:
                added = adapter(
                    i, before if run != self._last else before.index_select(1, self._ends)
                )
                x = x if added is None else x + added
        return self._read(x, unit)

    def _runs(self) -> list[tuple[Callable[[Block, Tensor], Tensor], Block]]:
        """The text tower's blocks, and how each is computed."""
        blocks = self.tower.blocks
        inner = [self._first, *[self._middle] * (len(blocks) - 2)][: len(blocks) - 1]
        return list(zip([*inner, self._last], blocks, strict=True))

    @torch.no_grad()
    def _before(self, context: Tensor, first: int) -> Tensor:
        """The input of block ``first`` under one context n times, (n, tokens, d): computed once."""
        one = context[:1]
        if first not in self._inputs or not torch.equal(self._inputs[first][0], one):
            x = self._packed(one)
            for run, block in self._runs()[:first]:
                x = run(block, x)
            self._inputs[first] = (one.clone(), x)
        return self._inputs[first][1].expand(len(context), -1, -1)

    def _packed(self, context: Tensor) -> Tensor:
        """(n, m, d) -> the packed sequences, (n, tokens, d)."""
        tower, context, n = self.tower, context.to(self.tower.dtype), len(context)
        prefix = torch.cat(
            [self._sos.expand(n, 1, -1), context + tower.positions[1 : 1 + self.n_ctx]], dim=1
        )
        return torch.cat([prefix, self._suffix.expand(n, -1, -1)], dim=1)

    def _read(self, x: Tensor, unit: bool) -> Tensor:
        """End tokens behind the last block (n, C, d), in packed order -> features (n, C, e)."""
        tower = self.tower
        features = linear(tower.normalize(x), tower.projection, tower.projection_bias)
        features = features.to(tower.dtype).index_select(1, self._inverse)
        return F.normalize(features, dim=-1) if unit else features

    def _first(self, block: Block, x: Tensor) -> Tensor:
        """The suffix does not depend on the context yet: only the prefix's queries, keys
        and values are computed."""
        prefix = self.tower.normalize(x[:, : 1 + self.n_ctx])
        qkv = torch.cat(
            [
                linear(prefix, block.in_weight, block.in_bias),
                self._suffix_qkv.expand(len(x), -1, -1),
            ],
            dim=1,
        )
        return self.tower.mlp(
            block, x + linear(self._attention.attend(qkv), block.out_weight, block.out_bias)
        )

    def _middle(self, block: Block, x: Tensor) -> Tensor:
        qkv = linear(self.tower.normalize(x), block.in_weight, block.in_bias)
        return self.tower.mlp(
            block, x + linear(self._attention.attend(qkv), block.out_weight, block.out_bias)
        )

    def _last(self, block: Block, x: Tensor) -> Tensor:
        """Only EOT is read: queries, output and MLP are computed for its rows alone; (n, C, d)
        remain."""
        normal, width = self.tower.normalize, x.shape[-1]
        ends = x.index_select(1, self._ends)
        queries = linear(normal(ends), block.in_weight[:width], block.in_bias[:width])
        kv = linear(normal(x), block.in_weight[width:], block.in_bias[width:])
        attended = self._attention.attend_at_ends(queries, kv)
        return self.tower.mlp(block, ends + linear(attended, block.out_weight, block.out_bias))
