"""A step beside busy processes, one for each core, against the same step without them."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from experiments.bench.step import STEP, setting

BUSY = "print(flush=True)\nwhile True: pass"


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """For each number of classes. Torch is imported before the process is set up."""
    cores = os.cpu_count() or 1
    for count in arguments.classes:
        method, params, batch, classes = setting(count, 1, arguments)

        def step(method=method, params=params, batch=batch, classes=classes):
            return method.gradients(params, batch, classes, STEP)

        step()
        alone: list[tuple[float, float]] = []
        beside: list[tuple[float, float]] = []
        for _ in range(arguments.repeats):
            alone.append(timed(step))
            with neighbours(cores):
                beside.append(timed(step))
        (fast, own), (slow, own_beside) = (
            [1e3 * statistics.median(values) for values in zip(*found, strict=True)]
            for found in (alone, beside)
        )
        yield {
            "bench": "neighbours",
            "classes": count,
            "neighbours": cores,
            "threads": torch.get_num_threads(),
            "ms": slow,
            "reference_ms": fast,
            "ratio": slow / fast,
            "processor_ms": own_beside,
            "reference_processor_ms": own,
        }


def timed(function: Callable) -> tuple[float, float]:
    """Return the seconds of a call, and the processor time that this process took for it."""
    start, own = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - own


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that never wait."""
    busy = [
        subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for process in busy:
            process.stdout.readline()  # it is at work
        yield
    finally:
        for process in busy:
            process.kill()
            process.communicate()
