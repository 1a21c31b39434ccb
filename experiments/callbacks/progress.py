"""How far something is: a live line in a terminal, a plain line now and then anywhere else."""

import math
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from experiments.reporting.formatting import format_seconds

BEFORE_LIVE = 1.5
"""Seconds that something takes before a terminal shows how far it is."""
BETWEEN_PLAIN = 10.0
"""Seconds before the first plain line, and between two."""


class ProgressLine:
    """The line of the stage at work.

    In a terminal it is live (a bar, a count, the time left) and goes when it is done; anywhere else
    (a file, a pipe, a continuous-integration log) what takes long gets a line every ten seconds.
    Stop it before other lines are written to the same terminal: it holds the cursor.

    Args:
        out: where to write.
        redirect: in a terminal, what others print to standard output and error is written above the
            live line, by ``out``; False leaves both alone.
    """

    def __init__(self, out: RichConsole, redirect: bool = True):
        self._out = out
        self._redirect = {"redirect_stdout": redirect, "redirect_stderr": redirect}
        self._live: Live | None = None
        self._spinner: Spinner | None = None
        self._what = ""
        self._began = self._last_line = math.inf
        self._first = self._done = 0

    def progress(self, done: int, total: int, what: str) -> None:
        """So many of something are done: ``encoding test images 1,200/4,800``, with the time
        left."""
        now = time.monotonic()
        if what != self._what or done < self._done:
            self._what, self._began, self._first, self._last_line = what, now, done, -math.inf
        self._done = done
        took, text = now - self._began, f"{what} {done:,}/{total:,}"
        left = (
            took / (done - self._first) * (total - done)
            if done > self._first and done < total
            else None
        )
        if self._out.is_terminal:
            if took >= BEFORE_LIVE:
                self.show(text, done, total, left)
        elif took >= BETWEEN_PLAIN and (now - self._last_line >= BETWEEN_PLAIN or done >= total):
            self._last_line = now
            # soft_wrap: a log line is one line, however narrow the stream claims to be
            self._out.print(
                text if left is None else f"{text}, {format_seconds(left)} left", soft_wrap=True
            )

    def show(
        self,
        text: str,
        done: int | None = None,
        total: int | None = None,
        left: float | None = None,
    ) -> None:
        """The live line: a spinner, the text, a bar if the end is known, the seconds left."""
        if self._spinner is None:
            self._spinner = Spinner("dots", style="cyan")
        parts: list[Any] = [self._spinner, Text(text)]
        if done is not None and total:
            parts.append(ProgressBar(total=total, completed=min(done, total), width=24))
        if left is not None:
            parts.append(Text(f"{format_seconds(left)} left", style="dim"))
        line = Table.grid(padding=(0, 1))
        line.add_row(*parts)
        if self._live is None:
            self._live = Live(
                line, console=self._out, transient=True, refresh_per_second=8, **self._redirect
            )
            self._live.start()
        else:
            self._live.update(line)

    def stop(self) -> None:
        """Take the live line away. Safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
