"""Text features of classes behind a fixed phrase, with low-rank adapters inside the text tower.

The prefix ``[SOS] phrase`` is still one for all classes, and the blocks before the first adapter
are one for all clients: they run once. In the first block with adapters the frozen queries, keys
and values are constants. Features and gradients equal those of the tower with merged weights
W + B A to rounding.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.model import FrozenCLIP
from fedpgp.errors import FedPGPError
from fedpgp.text.prefix_shared import PromptedTextEncoder
from fedpgp.towers.adapters import Adapters
from fedpgp.towers.folded import linear

QKV = ("q", "k", "v")


class AdaptedTextEncoder(PromptedTextEncoder):
    """Low-rank adapters -> one unit-norm text feature a class.

    Args:
        clip: the frozen model.
        class_names: in label order; underscores become spaces.
        phrase: what stands before every class name.
        first: the first block with adapters, from 0.
        dtype, compute: as :class:`PromptedTextEncoder` has them.

    Raises:
        FedPGPError: a model that takes full sequences.

    Example:
        >>> import torch
        >>> from fedpgp.clip import load_clip
        >>> encoder = AdaptedTextEncoder(load_clip("tiny"), ["cat", "dog"], "a photo of a", 0)
        >>> width, blocks = encoder.tower.width, len(encoder.tower.blocks)
        >>> A, B = torch.ones(3, blocks, 2, width), torch.zeros(3, blocks, width, 2)
        >>> encoder.encode_adapted({"q.A": A, "q.B": B}).shape[:2]  # of 3 clients
        torch.Size([3, 2])
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        phrase: str,
        first: int,
        *,
        dtype: torch.dtype | None = None,
        compute: torch.dtype | None = None,
    ):
        context = clip.embed_phrase(phrase)
        super().__init__(clip, class_names, len(context), dtype=dtype, compute=compute)
        if self._encode is not None:
            raise FedPGPError(
                f"low-rank adapters inside the text tower need a shared prefix: {self.path}"
            )
        self.first, self.folds = first, self.tower.folds(clip)
        with torch.no_grad():
            x = self._packed(context.unsqueeze(0))
            for block in self.tower.blocks[:first]:
                x = self._middle(block, x)
            block = self.tower.blocks[first]
            self._start = x
            self._qkv = linear(self.tower.normalize(x), block.in_weight, block.in_bias)

    def encode_adapted(
        self, tensors: Mapping[str, Tensor], dense: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return features under the adapters of n clients, (n, C, e), differentiable in them.

        Args:
            tensors, dense: as :class:`fedpgp.towers.adapters.Adapters` has them.
        """
        adapters = Adapters(tensors, self.first, self.folds, dense)
        if self.checkpointing:
            return self._in_chunks_of(adapters)
        return self.tower.graphs.record_more(
            self,
            lambda *flat: self._in_chunks_of(adapters.with_values(flat)),
            *adapters.flat,
            variant=adapters.names,
        )

    def _in_chunks_of(self, adapters: Adapters) -> Tensor:
        """Run :meth:`_adapted` in chunks where one pass would be too large (on a CPU)."""
        size = self.tower.chunk_size(len(adapters), self.tokens)
        if len(adapters) <= size:
            return self._adapted(adapters)
        chunks = (slice(start, start + size) for start in range(0, len(adapters), size))
        return torch.cat([self._adapted(adapters.of(chunk)) for chunk in chunks])

    def _adapted(self, adapters: Adapters) -> Tensor:
        x, blocks = self._start, len(self.tower.blocks)
        for i in range(self.first, blocks):
            run = self._adapted_last if i + 1 == blocks else self._adapted_middle
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, i, x, adapters, use_reentrant=False)
            else:
                x = run(i, x, adapters)
        return self._read(x, unit=True)

    def _adapted_middle(self, i: int, x: Tensor, adapters: Adapters) -> Tensor:
        """A block with adapters: (n or 1, tokens, d) -> (n or 1, tokens, d)."""
        block, normal = self.tower.blocks[i], self.tower.normalize(x)
        qkv = self._qkv if i == self.first else linear(normal, block.in_weight, block.in_bias)
        attended = self._attention.attend(adapters.add(i, QKV, qkv, normal))
        return self.tower.behind_attention(i, x, attended, adapters)

    def _adapted_last(self, i: int, x: Tensor, adapters: Adapters) -> Tensor:
        """The last block, of which only the end tokens are read: -> (n or 1, C, d)."""
        block, normal, width = self.tower.blocks[i], self.tower.normalize(x), x.shape[-1]
        ends = normal.index_select(1, self._ends)
        if i == self.first:
            queries = self._qkv[..., :width].index_select(1, self._ends)
            kv = self._qkv[..., width:]
        else:
            queries = linear(ends, block.in_weight[:width], block.in_bias[:width])
            kv = linear(normal, block.in_weight[width:], block.in_bias[width:])
        queries = adapters.add(i, QKV[:1], queries, ends)
        kv = adapters.add(i, QKV[1:], kv, normal)
        n = max(len(queries), len(kv))  # one of them may still be the same for all
        attended = self._attention.attend_at_ends(queries.expand(n, -1, -1), kv.expand(n, -1, -1))
        return self.tower.behind_attention(i, x.index_select(1, self._ends), attended, adapters)
