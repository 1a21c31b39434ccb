"""Locks between processes, on files. The kernel frees the lock of a process that dies."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedpgp.atomic_files import cannot_write, owner_only
from fedpgp.errors import FedPGPError

POLL = 0.02
"""Seconds between two looks at a lock that another process holds."""


class Busy(FedPGPError):
    """Another process holds a lock, for longer than is waited."""


@contextlib.contextmanager
def file_lock(
    path: Path,
    *,
    shared: bool = False,
    private: bool = False,
    optional: bool = False,
    wait: float | None = None,
    busy: str = "",
    refusal: Callable[[Path, OSError], FedPGPError] = cannot_write,
) -> Iterator[None]:
    """Hold a lock file.

    It is never removed: who waits for a removed file would hold a lock that nobody else sees.

    Args:
        path: the lock file; it is made where it is missing, its folder is not.
        shared: others may hold it at the same time, if they share it too.
        private: the file is its owner's alone, whatever the umask.
        optional: go on without a lock on a file system that has none.
        wait: seconds to wait for another process; None is without end.
        busy: message of the error when another process holds it for longer.
        refusal: makes the error of a file that cannot be opened or locked.

    Raises:
        FedPGPError: the file cannot be opened or locked.
        Busy: another process holds it.
    """
    try:
        file = open(path, "ab", opener=owner_only if private else None)  # noqa: SIM115  (closed below)
    except OSError as error:
        raise refusal(path, error) from error
    with file:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            if wait is None:
                fcntl.flock(file, mode)
            elif not _acquired(file.fileno(), mode, wait):
                raise Busy(busy)
        except OSError as error:
            if not optional:
                raise refusal(path, error) from error
        yield


def _acquired(file: int, mode: int, wait: float) -> bool:
    """Whether the lock is had within so many seconds."""
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
        time.sleep(POLL)
