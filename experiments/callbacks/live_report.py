"""The report of a run that is at work: written again after each round."""

import time
from collections.abc import Callable
from pathlib import Path

from clients.failures import describe
from experiments.callbacks.base import Callback
from experiments.reporting.page import write_report

REFRESH = 10
"""Seconds after which a browser loads the page again."""
PART = 0.1
"""Of a run's time that the page may take."""


class LiveReport(Callback):
    """Writes report.html after rounds and evaluations; the page loads itself again until the run
    has ended, which writes it for the last time.

    Args:
        folder: of the run.
        warn: told once when it cannot be written; the run goes on.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        self._folder, self._warn = folder, warn
        self._told = False
        self._next = 0.0

    def trained(self, record: dict) -> None:
        self._write()

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self._write()

    def _write(self) -> None:
        began = time.monotonic()
        if began < self._next:
            return
        try:
            write_report(self._folder, refresh=REFRESH)
        except Exception as error:  # a page is never worth a run
            if not self._told:
                self._warn(f"runtime.live: report.html could not be made ({describe(error)})")
            self._told = True
        took = time.monotonic() - began
        self._next = began + took / PART
