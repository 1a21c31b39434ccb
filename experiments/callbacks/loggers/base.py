"""What a logger is and what it gets.

Each gets the same names: ``train/loss``, ``eval/personal/local`` …, the round as step; at the end
``clients/personal/local`` … (a histogram over clients), the configuration and the run's page.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.callbacks.base import Callback
from fedpgp.errors import FedPGPError, unknown
from fedpgp.evaluation.figures import ACCURACIES
from fedpgp.registry import Registry


class Logger(Callback):
    """Takes numbers as they come."""

    def trained(self, record: dict) -> None:
        self.log(record)

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self.log(record)

    def log(self, record: Mapping) -> None:
        """Take the numbers of an object of ``metrics.jsonl``."""

    def close(self, summary: Mapping | None) -> None:
        """End the log; ``summary`` is None where the run has none."""


LOGGERS: Registry[Callable[[Path, Mapping, str], Logger]] = Registry(
    "experiments.callbacks.loggers"
)
"""Name -> what makes the logger from the run's folder, its configuration and its id. A new file in
this folder needs no mention anywhere else."""

register = LOGGERS.register

NONE = "none"
"""That of a run which is older than the choice."""


class GuardedLogger(Logger):
    """A logger whose failures do not end the run: a full disk, a service that is away.

    Args:
        logger: it is told nothing more after its first failure.
        name: as in ``logger=``.
        warn: told of the failure.
    """

    def __init__(self, logger: Logger, name: str, warn: Callable[[str], None]):
        self.logger, self._name, self._warn = logger, name, warn
        self._failed = False

    def log(self, record: Mapping) -> None:
        self._guarded(lambda: self.logger.log(record))

    def close(self, summary: Mapping | None) -> None:
        self._guarded(lambda: self.logger.close(summary))

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # whatever its package raises
            self._failed = True
            self._warn(
                f"logger={self._name} failed and gets no more figures "
                f"({type(error).__name__}: {error}); the run continues, and its folder has them all"
            )


def make_logger(
    folder: Path, config: Mapping, run: str, warn: Callable[[str], None]
) -> GuardedLogger:
    """Make the logger of a configuration.

    Raises:
        FedPGPError: unknown name, or its package is not there.
    """
    name = config.get("logger", {"name": NONE})["name"]
    if name not in LOGGERS:
        raise FedPGPError(unknown("logger", name, LOGGERS))
    return GuardedLogger(LOGGERS[name](folder, config, run), name, warn)


def over_clients(folder: Path) -> dict[str, list[float]]:
    """Return the figures of clients.csv, a value a client: ``clients/<model>/<figure>``."""
    found: dict[str, list[float]] = {}
    path = folder / "clients.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for figure in ACCURACIES:
                    if row[figure]:
                        found.setdefault(f"clients/{row['model']}/{figure}", []).append(
                            float(row[figure])
                        )
    return found


def numbers(record: Mapping) -> dict[str, float]:
    """Return the numbers of a record of metrics.jsonl (or of a summary) by name:
    ``<kind>/<key>/<inner key>``."""
    found: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}")
        elif isinstance(value, list):
            found[name] = float(len(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = float(value)

    for key, value in record.items():
        if key not in ("kind", "round"):
            walk(value, f"{record['kind']}/{key}")
    return found
