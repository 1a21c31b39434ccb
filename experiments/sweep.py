"""What a person sees of a sweep beside its runs: which job of how many, the time left, and
the table at its end."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.override_checks import values_of
from experiments.reporting.formatting import format_seconds
from experiments.settings import choices, parse
from fedpgp.errors import FedPGPError


class Sweep:
    """The jobs of one sweep, in this process.

    Args:
        total: number of jobs; None where a launcher starts them elsewhere.
    """

    def __init__(self, total: int | None):
        self.total, self.done, self._worked, self._seconds = total, 0, 0, 0.0
        self._began: float | None = None

    def begin(self, name: str) -> str:
        """Return the line that stands above a job."""
        self._began = time.monotonic()
        if self.total is None:
            return f"\n{name}"
        line = f"\njob {self.done + 1} of {self.total}: {name}"
        left = math.nan
        if self._worked and self._seconds > 1:
            left = self._seconds / self._worked * (self.total - self.done)
        return (
            line if math.isnan(left) else f"{line} (about {format_seconds(left)} left of the whole)"
        )

    def skip(self) -> None:
        """Let the job that has begun say nothing of the time left: it was finished before."""
        self._began = None

    def end(self) -> None:
        """Count a job as done."""
        self.done += 1
        if self._began is not None:
            self._worked += 1
            self._seconds += time.monotonic() - self._began


def jobs(overrides: Sequence[str], swept: Mapping[str, object]) -> int:
    """Return the number of jobs of a sweep.

    Args:
        overrides: of the command line.
        swept: an experiment's own (``hydra.sweeper.params``): key -> its values as they are
            written.
    """
    given = [*parse([f"{key}={values}" for key, values in swept.items()]), *parse(overrides)]
    groups = choices()
    counts: dict[str, int] = {}
    for override in given:
        if not override.key_or_group.startswith("hydra"):
            values = values_of(override, groups.get(override.key_or_group, ()))
            counts[override.key_or_group] = len(values) if override.is_sweep_override() else 1
    return math.prod(counts.values())


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
