"""What every benchmark measures with: two functions in turn, peak memory, this
machine's GEMM speed."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.memory import start_peak, status_mb
from fedpgp.towers.cuda_graphs import RUNS_FIRST, eager


def in_turn(first: Callable, second: Callable, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of two functions, called in turn, after calls of each that are not
    counted: one, on a GPU as many as record their graphs."""
    times: tuple[list[float], list[float]] = ([], [])
    ahead = 1 + RUNS_FIRST if torch.cuda.is_available() else 1
    for i in range(ahead + repeats):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= ahead:
                seconds.append(time.perf_counter() - start)
    return times


def median_seconds(function: Callable, repeats: int) -> float:
    """Return the median seconds of a call, after one that is not counted."""
    return statistics.median(in_turn(function, lambda: None, repeats)[0])


def peak_memory(function: Callable) -> float | None:
    """Return the MiB that a call adds at its highest: allocated GPU memory, or this process's
    resident set; None where the system does not keep a resettable peak (it is Linux's)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with eager():  # the memory of CUDA graphs is not counted
            function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not start_peak():
        return None
    before = status_mb("VmRSS")
    function()
    return max(0.0, status_mb("VmHWM") - before)


def gflop(function: Callable) -> float:
    """Return the GFLOP of the matrix products and convolutions of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def block_products(
    rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Callable, float]:
    """Return a function that multiplies matrices of the shapes of a transformer block's linear
    layers, and its GFLOP."""
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    inputs = {
        size: torch.randn(rows, size, device=device, dtype=dtype) for size in (width, 4 * width)
    }
    weights = [torch.randn(o, i, device=device, dtype=dtype) for i, o in shapes]

    def products() -> None:
        for (i, _), weight in zip(shapes, weights, strict=True):
            inputs[i] @ weight.T

    return products, sum(2 * rows * i * o for i, o in shapes) / 1e9


def gemm_gflops(
    rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> float:
    """This machine's GEMM speed at the shapes of a transformer block's linear layers."""
    products, gflop = block_products(rows, width, device, dtype)
    return gflop / median_seconds(products, 10)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def machine() -> dict:
    """Return what the figures ran on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name
        )
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
