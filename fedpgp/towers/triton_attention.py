"""The attention of :mod:`fedpgp.towers.packed_attention` as one kernel forward and one backward.

A program takes a tile: whole classes that lie one behind the other, of one head of one sequence. It
reads the prefix and the tile where they are in the packed sequence, so that nothing is copied to
another layout and no class is padded. Backward it computes the softmax again: beside the sequence
nothing is kept. What the tiles add to the gradient of the prefix is written tile by tile and added
up in a fixed order, so that the same call gives the same numbers.

Float32 is multiplied as such, without TF32. With bfloat16, products add up in float32; scores and
softmax are float32, and what goes into a product again is rounded to bfloat16.

Triton is not among this project's dependencies: torch's builds for CUDA bring it along. Its
interpreter (``TRITON_INTERPRET=1``) runs the kernels on a CPU, for tests.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpgp.errors import FedPGPError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LONGEST = 64
"""Most tokens of a prefix or a class: what a program holds at once."""

TILES = {torch.float32: 16, torch.bfloat16: 32}
"""The precisions that the kernels have, and the tokens of a tile: as many as the compiler holds in
registers, with :func:`_warps`."""


def why_not(device: torch.device) -> str | None:
    """Return why the kernels cannot run there; None when they can."""
    if triton is None:
        return "triton is not installed (torch's builds for CUDA bring it along)"
    if device.type != "cuda" and isinstance(_forward, triton.JITFunction):
        return f"device={device.type}: triton's kernels need a GPU"
    return None


class TritonAttention:
    """Softmax attention of the prefix (causal) and of each class over the prefix and itself
    (causal). Differentiable once; not under ``torch.func.vmap``.

    Args:
        prefix: tokens that every class sees.
        heads: attention heads.
        width: of all heads together; a head's is a power of two from 16 to 128.
        lengths: tokens of each class, in packed order.
        dtype, device: of what will attend.
        tile: most tokens that a program takes, a power of two from 16 on; more where a class is
            longer. None: those of :data:`TILES`.
        warps: of a program; None: those of :func:`_warps`.
        products: of float32: ``"ieee"``, or ``"tf32x3"``, three TF32 products for each.

    Attributes:
        padding: tokens added to the sequence: none.

    Raises:
        FedPGPError: no triton or no GPU, or sizes or a precision that the kernels do not have.
    """

    padding = 0

    def __init__(
        self,
        prefix: int,
        heads: int,
        width: int,
        lengths: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        tile: int | None = None,
        warps: int | None = None,
        products: str = "ieee",
    ):
        size, longest = width // heads, max(prefix, *lengths)
        reason = why_not(device)
        if dtype not in TILES:
            reason = f"{dtype} is not float32 or bfloat16"
        elif size not in (16, 32, 64, 128):
            reason = f"a head of {size} numbers is not 16, 32, 64 or 128 wide"
        elif longest > LONGEST:
            reason = f"a prefix or class of {longest} tokens is longer than {LONGEST}"
        if reason:
            raise FedPGPError(f"attention=triton: {reason}; use padded or packed")
        self.prefix, self.heads, self.size = prefix, heads, size
        self.prefix_block = _block(prefix)
        self.tile = max(tile or TILES[dtype], _block(max(lengths)))
        self.warps, self.products = warps or _warps(dtype, self.tile), products
        classes = _tiles(lengths, self.tile)
        starts = [prefix + sum(lengths[:first]) for first, _ in classes]
        tokens = [sum(lengths[first:stop]) for first, stop in classes]
        of_prefix = [
            (start, min(self.tile, prefix - start), 0, 0) for start in range(0, prefix, self.tile)
        ]
        whole = [(start, count, start, count) for start, count in zip(starts, tokens, strict=True)]
        ends = [
            (first, stop - first, start, count)
            for (first, stop), start, count in zip(classes, starts, tokens, strict=True)
        ]
        self.end_block = _block(max(stop - first for first, stop in classes))

        def integers(values: Sequence) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.tiles, self.end_tiles = integers(of_prefix + whole), integers(ends)
        class_of = [-1] * prefix + [c for c, length in enumerate(lengths) for _ in range(length)]
        self.class_of, self.rows = integers(class_of), integers(range(len(class_of)))
        self.end_class_of = integers(range(len(lengths)))
        self.end_rows = integers([prefix + sum(lengths[: c + 1]) - 1 for c in range(len(lengths))])

    def attend(self, qkv: Tensor) -> Tensor:
        """As :meth:`fedpgp.towers.packed_attention.Packing.attend`."""
        return _Attention.apply(self, qkv, None)

    def attend_at_ends(self, queries: Tensor, kv: Tensor) -> Tensor:
        """As :meth:`fedpgp.towers.packed_attention.Packing.attend_at_ends`."""
        return _Attention.apply(self, kv, queries)

    def launch(self, kernel, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, ends: bool) -> None:
        """Run a kernel for all tiles, heads and sequences.

        Args:
            kernel: ``_forward`` or ``_backward``.
            q, k, v: (n, rows, d).
            rest: what else it reads and writes, each with its strides.
            ends: whether only the classes' last tokens ask.
        """
        tiles, class_of, rows, block = (
            (self.end_tiles, self.end_class_of, self.end_rows, self.end_block)
            if ends
            else (self.tiles, self.class_of, self.rows, self.tile)
        )
        with torch.cuda.device_of(q):
            kernel[(len(tiles), self.heads, len(q))](
                tiles,
                class_of,
                rows,
                self.class_of,
                *(part for x in (q, k, v, *rest) for part in (x, x.stride(0), x.stride(1))),
                P=self.prefix,
                D=self.size,
                PREFIX=self.prefix_block,
                QUERIES=block,
                KEYS=self.tile,
                # The interpreter multiplies the bits of bfloat16 as whole numbers.
                HOW=self.products if isinstance(kernel, triton.JITFunction) else "widened",
                num_warps=self.warps,
            )


def _block(count: int) -> int:
    """The least power of two that holds so many rows and that a product of matrices takes."""
    return max(16, 1 << (count - 1).bit_length())


def _warps(dtype: torch.dtype, tile: int) -> int:
    """The fewest warps, from 4 on, with which float32's tiles stay in registers (nearly, at 64
    tokens): the compiler unrolls what has no matrix units."""
    if dtype == torch.bfloat16:
        return 4
    return 8 if tile <= 32 else 16


def _tiles(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Classes (first, stop) of each tile: as many as fit."""
    tiles, first, tokens = [], 0, 0
    for c, length in enumerate(lengths):
        if tokens + length > most:
            tiles.append((first, c))
            first, tokens = c, 0
        tokens += length
    return [*tiles, (first, len(lengths))]


class _Attention(torch.autograd.Function):
    """With ``queries`` only the last token of each class asks, and ``tensor`` holds keys and values
    alone."""

    @staticmethod
    def forward(ctx, how: TritonAttention, tensor: Tensor, queries: Tensor | None) -> Tensor:
        tensor, queries = _rows(tensor), None if queries is None else _rows(queries)
        q, k, v = _parts(how, tensor, queries)
        out = tensor.new_empty(q.shape)
        how.launch(_forward, q, k, v, out, ends=queries is not None)
        ctx.how, ctx.alone = how, queries is not None
        ctx.save_for_backward(tensor, queries)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, Tensor | None]:
        how, (tensor, queries) = ctx.how, ctx.saved_tensors
        grad, p, n = _rows(grad), how.prefix, len(grad)
        d_tensor = tensor.new_empty(tensor.shape)
        d_queries = None if queries is None else queries.new_empty(queries.shape)
        q, k, v = _parts(how, tensor, queries)
        d_q, d_k, d_v = _parts(how, d_tensor, d_queries)
        tiles = len(how.end_tiles if ctx.alone else how.tiles)
        # What each tile adds to the keys of the prefix, and to its values.
        d_prefix = grad.new_empty(n, tiles, 2, p, grad.shape[-1], dtype=torch.float32)
        how.launch(_backward, q, k, v, grad, d_q, d_k, d_v, d_prefix, ends=ctx.alone)
        for d, part in zip((d_k, d_v), d_prefix.sum(1).unbind(1), strict=True):
            d[:, :p].copy_(part)
        return None, d_tensor, d_queries


def _rows(x: Tensor) -> Tensor:
    """With numbers of a row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _parts(how: TritonAttention, tensor: Tensor, queries: Tensor | None) -> Sequence[Tensor]:
    """Queries, keys and values, or their gradients, each (n, rows, d)."""
    parts = tensor.split(how.heads * how.size, dim=-1)
    return parts if queries is None else (queries, *parts)


if triton is not None:

    @triton.jit
    def _product(a, b, HOW: tl.constexpr):
        """a @ b in float32; a is rounded to b's precision first."""
        a = a.to(b.dtype)
        if HOW == "widened":
            return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        return tl.dot(a, b, input_precision=HOW)

    @triton.jit
    def _load(x, n_stride, row_stride, start, count, D: tl.constexpr, ROWS: tl.constexpr):
        """(ROWS, D) of a head of a sequence; zeros behind ``count``."""
        row, column = tl.arange(0, ROWS), tl.arange(0, D)
        places = tl.program_id(2).to(tl.int64) * n_stride + tl.program_id(1) * D
        places += (start + row)[:, None] * row_stride + column[None, :]
        return tl.load(x + places, mask=(row < count)[:, None], other=0.0)

    @triton.jit
    def _store(x, n_stride, row_stride, start, count, values, D: tl.constexpr, ROWS: tl.constexpr):
        row, column = tl.arange(0, ROWS), tl.arange(0, D)
        places = tl.program_id(2).to(tl.int64) * n_stride + tl.program_id(1) * D
        places += (start + row)[:, None] * row_stride + column[None, :]
        tl.store(x + places, values.to(x.dtype.element_ty), mask=(row < count)[:, None])

    @triton.jit
    def _softmax(q, k_prefix, k, row, own, key_row, theirs, P: tl.constexpr, HOW: tl.constexpr):
        """How much each query takes of each token of the prefix and of the tile. ``row`` and
        ``key_row`` are places in the sequence, ``own`` and ``theirs`` classes."""
        p = tl.arange(0, k_prefix.shape[0])
        sees_prefix = (p[None, :] < P) & (p[None, :] <= row[:, None])
        sees = (own[:, None] == theirs[None, :]) & (key_row[None, :] <= row[:, None])
        to_prefix = _product(q, tl.trans(k_prefix), HOW)
        to_self = _product(q, tl.trans(k), HOW)
        to_prefix = tl.where(sees_prefix, to_prefix, float("-inf"))
        to_self = tl.where(sees, to_self, float("-inf"))
        most = tl.maximum(tl.max(to_prefix, 1), tl.max(to_self, 1))[:, None]
        to_prefix, to_self = tl.exp(to_prefix - most), tl.exp(to_self - most)
        total = (tl.sum(to_prefix, 1) + tl.sum(to_self, 1))[:, None]
        return to_prefix / total, to_self / total

    @triton.jit
    def _forward(
        tiles,
        class_of,
        rows,
        key_class_of,
        q_,
        q_n,
        q_row,
        k_,
        k_n,
        k_row,
        v_,
        v_n,
        v_row,
        out_,
        out_n,
        out_row,
        P: tl.constexpr,
        D: tl.constexpr,
        PREFIX: tl.constexpr,
        QUERIES: tl.constexpr,
        KEYS: tl.constexpr,
        HOW: tl.constexpr,
    ):
        tile = tiles + 4 * tl.program_id(0)
        q_start, q_count = tl.load(tile), tl.load(tile + 1)
        k_start, k_count = tl.load(tile + 2), tl.load(tile + 3)
        q = _load(q_, q_n, q_row, q_start, q_count, D, QUERIES)
        k_prefix = _load(k_, k_n, k_row, 0, P, D, PREFIX)
        k = _load(k_, k_n, k_row, k_start, k_count, D, KEYS)
        i, j = tl.arange(0, QUERIES), tl.arange(0, KEYS)
        # A row without a query sees the first token: its sum is not zero.
        row = tl.load(rows + q_start + i, mask=i < q_count, other=0)
        own = tl.load(class_of + q_start + i, mask=i < q_count, other=-2)
        theirs = tl.load(key_class_of + k_start + j, mask=j < k_count, other=-3)
        of_prefix, of_self = _softmax(q, k_prefix, k, row, own, k_start + j, theirs, P, HOW)
        v_prefix = _load(v_, v_n, v_row, 0, P, D, PREFIX)
        v = _load(v_, v_n, v_row, k_start, k_count, D, KEYS)
        out = _product(of_prefix, v_prefix, HOW) + _product(of_self, v, HOW)
        _store(out_, out_n, out_row, q_start, q_count, out, D, QUERIES)

    @triton.jit
    def _backward(
        tiles,
        class_of,
        rows,
        key_class_of,
        q_,
        q_n,
        q_row,
        k_,
        k_n,
        k_row,
        v_,
        v_n,
        v_row,
        grad_,
        grad_n,
        grad_row,
        d_q_,
        d_q_n,
        d_q_row,
        d_k_,
        d_k_n,
        d_k_row,
        d_v_,
        d_v_n,
        d_v_row,
        d_prefix_,
        d_prefix_n,
        d_prefix_tile,
        P: tl.constexpr,
        D: tl.constexpr,
        PREFIX: tl.constexpr,
        QUERIES: tl.constexpr,
        KEYS: tl.constexpr,
        HOW: tl.constexpr,
    ):
        tile = tiles + 4 * tl.program_id(0)
        q_start, q_count = tl.load(tile), tl.load(tile + 1)
        k_start, k_count = tl.load(tile + 2), tl.load(tile + 3)
        q = _load(q_, q_n, q_row, q_start, q_count, D, QUERIES)
        k_prefix = _load(k_, k_n, k_row, 0, P, D, PREFIX)
        k = _load(k_, k_n, k_row, k_start, k_count, D, KEYS)
        i, j = tl.arange(0, QUERIES), tl.arange(0, KEYS)
        row = tl.load(rows + q_start + i, mask=i < q_count, other=0)
        own = tl.load(class_of + q_start + i, mask=i < q_count, other=-2)
        theirs = tl.load(key_class_of + k_start + j, mask=j < k_count, other=-3)
        of_prefix, of_self = _softmax(q, k_prefix, k, row, own, k_start + j, theirs, P, HOW)
        v_prefix = _load(v_, v_n, v_row, 0, P, D, PREFIX)
        v = _load(v_, v_n, v_row, k_start, k_count, D, KEYS)
        grad = _load(grad_, grad_n, grad_row, q_start, q_count, D, QUERIES)
        width = D * tl.num_programs(1)
        d_prefix_ += tl.program_id(0) * d_prefix_tile
        d_v_prefix = _product(tl.trans(of_prefix), grad, HOW)
        _store(d_prefix_, d_prefix_n, width, P, P, d_v_prefix, D, PREFIX)
        d_v = _product(tl.trans(of_self), grad, HOW)
        _store(d_v_, d_v_n, d_v_row, k_start, k_count, d_v, D, KEYS)
        d_of_prefix = _product(grad, tl.trans(v_prefix), HOW)
        d_of_self = _product(grad, tl.trans(v), HOW)
        mean = tl.sum(of_prefix * d_of_prefix, 1) + tl.sum(of_self * d_of_self, 1)
        d_to_prefix = of_prefix * (d_of_prefix - mean[:, None])
        d_to_self = of_self * (d_of_self - mean[:, None])
        d_q = _product(d_to_prefix, k_prefix, HOW) + _product(d_to_self, k, HOW)
        _store(d_q_, d_q_n, d_q_row, q_start, q_count, d_q, D, QUERIES)
        d_k_prefix = _product(tl.trans(d_to_prefix), q, HOW)
        _store(d_prefix_, d_prefix_n, width, 0, P, d_k_prefix, D, PREFIX)
        d_k = _product(tl.trans(d_to_self), q, HOW)
        _store(d_k_, d_k_n, d_k_row, k_start, k_count, d_k, D, KEYS)
