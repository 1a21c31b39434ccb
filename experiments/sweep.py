"""What a person sees of a sweep beside its runs: which job of how many, the time left, and the table at its end."""

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.reporting.words import human_seconds
from experiments.settings import parse
from fedpgp.errors import FedPGPError

LATEST = "latest"
"""Beside the runs of an experiment: a link to the newest, or a file with its name where links are not possible."""


class Sweep:
    """The jobs of one sweep, in this process.

    Args:
        total: number of jobs; None where a launcher starts them elsewhere.
    """

    def __init__(self, total: int | None):
        self.total, self.done, self._seconds = total, 0, 0.0
        self._began: float | None = None

    def begin(self, name: str) -> str:
        """Return the line that stands above a job."""
        self._began = time.monotonic()
        if self.total is None:
            return f"\n{name}"
        line = f"\njob {self.done + 1} of {self.total}: {name}"
        left = self._seconds / self.done * (self.total - self.done) if self.done and self._seconds > 1 else math.nan
        return line if math.isnan(left) else f"{line} (about {human_seconds(left)} left of the whole)"

    def end(self) -> None:
        """Count a job as done."""
        self.done += 1
        if self._began is not None:
            self._seconds += time.monotonic() - self._began


def jobs(overrides: Sequence[str], swept: Mapping[str, object]) -> int:
    """Return the number of jobs of a sweep.

    Args:
        overrides: of the command line.
        swept: an experiment's own (``hydra.sweeper.params``): key -> its values as they are written.
    """
    counts = {key: _values(f"{key}={values}") for key, values in swept.items()}
    for override in parse(overrides):
        if not override.key_or_group.startswith("hydra"):
            counts[override.key_or_group] = _values(str(override.input_line))
    return math.prod(counts.values())


def _values(line: str) -> int:
    (override,) = parse([line])
    return len(list(override.sweep_iterator())) if override.is_sweep_override() else 1


def show_table(folder: Path) -> None:
    """Print the table of a sweep's finished runs, write its page, and say where that is."""
    from experiments import report
    from experiments.reporting.runs import find_runs

    runs = find_runs([folder]) if folder.is_dir() else []
    if len(runs) < 2:
        return
    print()
    if report.main([str(folder)]) == 0:
        with contextlib.suppress(FedPGPError):
            report.main([str(folder), "--format", "html"])


def point_latest(folder: Path) -> None:
    """Let ``latest`` beside a new default folder name it. Nothing depends on it: a failure is passed over."""
    link = folder.parent / LATEST
    with contextlib.suppress(OSError):
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            temporary.write_text(f"{folder.name}\n")
        os.replace(temporary, link)
