"""Triton's attention against the packed one in float64: outputs and gradients.

On a GPU: make test ARGS="-m gpu". On a CPU with triton installed: TRITON_INTERPRET=1 before pytest.
"""

from itertools import groupby

import pytest
import torch

from fedpgp.errors import FedPGPError
from fedpgp.towers.packed_attention import Group, Packing
from fedpgp.towers.triton_attention import (
    LONGEST,
    TritonAttention,
    triton,
    why_not,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHY_NOT = why_not(DEVICE)
needs_kernels = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
HEADS = 2
SHAPES = {  # tokens of the prefix, of each class, sequences
    "one class": (1, [3], 1),
    "ragged": (5, [1, 1, 2, 3, 3, 3, 7, 9], 2),
    "several tiles": (17, [3] * 9 + [4] * 5 + [5, 8], 3),
    "longer than a tile": (40, [3, 20, 20, 33], 1),
}
# Relative, in the norm. The interpreter cuts bfloat16 off where a GPU rounds it.
NEAR = {torch.float32: 1e-6, torch.bfloat16: 3e-3 if DEVICE.type == "cuda" else 8e-3}


def packing(prefix: int, lengths: list[int]) -> Packing:
    groups, start, first = [], 0, 0
    for length, same in groupby(lengths):
        count = len(list(same))
        groups.append(Group(length, count, start, first))
        start, first = start + length * count, first + count
    return Packing(prefix, HEADS, groups)


def ours_of(prefix: int, lengths: list[int], size: int, dtype: torch.dtype, **options):
    return TritonAttention(prefix, HEADS, HEADS * size, lengths, dtype, DEVICE, **options)


@pytest.fixture
def poisoned():
    """Memory that nobody writes is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def compare(ours, theirs, arguments: list[torch.Tensor], near: float) -> None:
    """Two functions of the same arguments and a gradient: of the sizes of the arguments, NaN
    nowhere, and near each other."""
    leaves = [x.to(DEVICE).requires_grad_() for x in arguments]
    exact = [x.double().requires_grad_() for x in arguments]
    y, true_y = ours(*leaves), theirs(*exact)
    weights = torch.randn(y.shape).to(y.dtype)
    grads = torch.autograd.grad(y, leaves, weights.to(DEVICE))
    true_grads = torch.autograd.grad(true_y, exact, weights.double())
    for mine, true in zip((y, *grads), (true_y, *true_grads), strict=True):
        assert mine.dtype == arguments[0].dtype and mine.shape == true.shape
        assert (mine.cpu() - true).norm() < near * true.norm()


@needs_kernels
@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_token(shape, dtype, poisoned):
    torch.manual_seed(0)
    prefix, lengths, n = shape
    qkv = torch.randn(n, prefix + sum(lengths), 3 * HEADS * 64).div(3).to(dtype)
    how = ours_of(prefix, lengths, 64, dtype)
    compare(how.attend, packing(prefix, lengths).attend, [qkv], NEAR[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_ends_alone(shape, dtype, poisoned):
    torch.manual_seed(0)
    prefix, lengths, n = shape
    queries = torch.randn(n, len(lengths), HEADS * 64).div(3).to(dtype)
    kv = torch.randn(n, prefix + sum(lengths), 2 * HEADS * 64).div(3).to(dtype)
    how = ours_of(prefix, lengths, 64, dtype)
    compare(how.attend_at_ends, packing(prefix, lengths).attend_at_ends, [queries, kv], NEAR[dtype])


@needs_kernels
@pytest.mark.parametrize("tile, size", [(16, 32), (64, 16), (32, 128)])
def test_other_tiles_and_heads(tile, size):
    torch.manual_seed(0)
    prefix, lengths, n = SHAPES["several tiles"]
    qkv = torch.randn(n, prefix + sum(lengths), 3 * HEADS * size).div(3)
    how = ours_of(prefix, lengths, size, torch.float32, tile=tile, warps=2)
    compare(how.attend, packing(prefix, lengths).attend, [qkv], 1e-6)


@needs_kernels
def test_one_sequence_for_all_and_rows_that_do_not_lie_side_by_side():
    """As low-rank adapters give them: expanded, and cut out of something wider."""
    torch.manual_seed(0)
    prefix, lengths, _ = SHAPES["ragged"]
    queries, kv = (
        torch.randn(1, rows, width).div(3)
        for rows, width in ((len(lengths), 3 * HEADS * 16), (prefix + sum(lengths), HEADS * 32))
    )
    how, exact = ours_of(prefix, lengths, 16, torch.float32), packing(prefix, lengths)

    def of(attend):
        return lambda q, kv: attend(
            q[..., : HEADS * 16].expand(3, -1, -1), kv.mT.contiguous().mT.expand(3, -1, -1)
        )

    compare(of(how.attend_at_ends), of(exact.attend_at_ends), [queries, kv], 1e-6)


@needs_kernels
def test_large_scores_do_not_overflow():
    torch.manual_seed(0)
    prefix, lengths, n = SHAPES["ragged"]
    qkv = torch.randn(n, prefix + sum(lengths), 3 * HEADS * 16) * 30
    how = ours_of(prefix, lengths, 16, torch.float32)
    compare(how.attend, packing(prefix, lengths).attend, [qkv], 1e-4)


@needs_kernels
def test_the_same_call_gives_the_same_bits():
    prefix, lengths, n = SHAPES["ragged"]
    qkv = torch.randn(n, prefix + sum(lengths), 3 * HEADS * 16, device=DEVICE).requires_grad_()
    how = ours_of(prefix, lengths, 16, torch.float32)
    first, second = (torch.autograd.grad(how.attend(qkv).square().sum(), qkv)[0] for _ in range(2))
    assert torch.equal(first, second)


@needs_kernels
@pytest.mark.parametrize(
    "prefix, longest, size, dtype, said",
    [
        (5, 3, 24, torch.float32, "a head of 24 numbers"),
        (5, 3, 16, torch.float64, "torch.float64 is not"),
        (5, LONGEST + 1, 16, torch.float32, f"of {LONGEST + 1} tokens"),
        (LONGEST + 1, 3, 16, torch.float32, f"of {LONGEST + 1} tokens"),
    ],
)
def test_what_the_kernels_do_not_have_is_refused(prefix, longest, size, dtype, said):
    with pytest.raises(FedPGPError, match=f"attention=triton: .*{said}.*use padded or packed"):
        ours_of(prefix, [1, longest], size, dtype)


@pytest.mark.skipif(WHY_NOT is None, reason="the kernels can run here")
def test_where_the_kernels_cannot_run_they_are_refused():
    with pytest.raises(FedPGPError, match="attention=triton: (triton is not installed|device=cpu)"):
        ours_of(5, [3], 16, torch.float32)


@pytest.mark.skipif(
    DEVICE.type == "cuda" or triton is None or WHY_NOT is None,
    reason="for a machine with triton, without its interpreter and without a GPU",
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_kernels_compile_for_a_gpu_and_float32_is_not_tf32(dtype):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fedpgp.towers.triton_attention import _backward, _forward

    constants = {"P": 17, "D": 64, "PREFIX": 32, "QUERIES": 16, "KEYS": 16, "HOW": "ieee"}
    for kernel in (_forward, _backward):
        signature = dict.fromkeys(kernel.arg_names, "i32")
        signature |= {name: f"*{dtype}" for name in signature if name.endswith("_")}
        signature |= dict.fromkeys(("tiles", "class_of", "rows", "key_class_of"), "*i32")
        signature |= {"d_prefix_": "*fp32"} if "d_prefix_" in signature else {}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, constants)
        made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 8})
        assert ("mma.sync" in made.asm["ptx"]) == (dtype == "bf16")
        assert "tf32" not in made.asm["ptx"] and made.metadata.shared <= 227 * 1024
