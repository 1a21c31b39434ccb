"""A command under watch: when each of its records came, and the memory of all its processes."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedpgp.errors import FedPGPError

LOOK, WEIGH = 0.02, 2.0
"""Seconds between two looks at the file of records, and at the memory."""
SHOWN = 2000
"""Characters of a failed command's output that are shown."""


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        records: the lines of its file.
        seconds: since it was started, when each line was there.
        peak_mb: the most resident memory (MiB) of all its processes together, shared pages counted
            once.
    """

    records: list[dict]
    seconds: list[float]
    peak_mb: float


def watch(command: Sequence[str], file: Path, environment: Mapping[str, str]) -> Watched:
    """Run a command to its end.

    Args:
        command: what is run.
        file: where it adds a JSON line at a time.
        environment: variables beside this process's own.

    Raises:
        FedPGPError: it failed; with the end of what it said.
    """
    began = time.perf_counter()
    output = file.parent.parent / f"{file.parent.name}.log"
    with output.open("w") as said:
        process = psutil.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | environment
        )
        try:
            records, seconds, peak_mb = _follow(process, file, began)
        finally:
            _end(process)
    if process.returncode:
        raise FedPGPError(f"{' '.join(command)} failed:\n{output.read_text()[-SHOWN:]}")
    return Watched(records, seconds, peak_mb)


def _follow(
    process: psutil.Popen, file: Path, began: float
) -> tuple[list[dict], list[float], float]:
    records: list[dict] = []
    seconds: list[float] = []
    peak_mb, weighed, read, running = 0.0, -WEIGH, 0, True
    while running:
        running = process.poll() is None  # then one more look
        now = time.perf_counter() - began
        if file.exists() and file.stat().st_size > read:
            lines = file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            new = [json.loads(line) for line in whole[len(records) :]]
            records, seconds = records + new, seconds + [now] * len(new)
            read = sum(len(line.encode()) for line in whole)
        if running and now - weighed >= WEIGH:
            weighed, peak_mb = now, max(peak_mb, _memory_of_all(process))
        time.sleep(LOOK if running else 0)
    return records, seconds, peak_mb


def _memory_of_all(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return sum(map(_memory_mb, [process, *process.children(recursive=True)]))
    return 0.0


def _memory_mb(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.uss) / 2**20  # Linux alone shares pages out
    return 0.0


def _end(process: psutil.Popen) -> None:
    """End what is still running, where this command is stopped."""
    if process.poll() is None:
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()
