"""How far the workers of a simulation are, told to the server by small files in the run's folder.

A reply comes when all clients of a message are done; with thousands of clients, or images that
are encoded first, that is minutes. On a cluster all machines see the run's folder. A deployed
client tells its own log.
"""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import MALFORMED, FedPGPError

CLIENTS = "clients"
"""What is counted when clients are; anything else is said in its own words."""
BETWEEN = 0.5
"""Seconds before the first writing, and between two."""
BETWEEN_LINES = 10.0
"""The same of lines in a node's log."""


@dataclass(frozen=True)
class Count:
    """How many of how many are done, in one process."""

    what: str
    done: int
    total: int


class Progress:
    """What one process tells.

    Args:
        folder: of a simulation's private states; None is a deployed client, whose log
            gets a line now and then.
    """

    def __init__(self, folder: Path | None):
        name = f"{socket.gethostname()}-{os.getpid()}.json"
        self._file = None if folder is None else progress_folder(folder) / name
        self._last, self._written = time.monotonic(), False

    def __call__(self, done: int, total: int, what: str) -> None:
        """Tells, unless it has just done so or just begun."""
        now = time.monotonic()
        if now - self._last < (BETWEEN_LINES if self._file is None else BETWEEN):
            return
        self._last, self._written = now, True
        if self._file is None:
            if what != CLIENTS:
                print(f"{what} {done:,}/{total:,}", file=sys.stderr, flush=True)
            return
        with contextlib.suppress(FedPGPError):  # a full disk is said where it costs something
            content = json.dumps({"what": what, "done": done, "total": total})
            write_atomically(self._file, content.encode(), flush=False)

    def end(self) -> None:
        """What was told is over."""
        if self._file is not None and self._written:
            with contextlib.suppress(OSError):
                self._file.unlink()


def progress_folder(folder: Path) -> Path:
    """Return where the files are, below the folder of the private states."""
    return folder / "progress"


def read_progress(folder: Path) -> list[Count]:
    """Return what the processes have told."""
    found = []
    for file in progress_folder(folder).glob("[!.]*.json"):
        with contextlib.suppress(OSError, *MALFORMED):  # gone again
            content = json.loads(file.read_text())
            found.append(Count(str(content["what"]), int(content["done"]), int(content["total"])))
    return found


def clear_progress(folder: Path) -> None:
    """Remove what processes that are dead have told."""
    for file in progress_folder(folder).glob("*.json"):
        with contextlib.suppress(OSError):
            file.unlink()
