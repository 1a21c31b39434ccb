"""Keeps a worker process from outliving its use: past the round's deadline, after its parent's
death, after a newer attempt.

A server that is killed cannot tell its workers to stop, and a client that hangs does not look at
the clock. So every process that works for somebody else watches these three itself, and ends.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from clients.messages import Job
from clients.private_state import PrivateStore
from fedpgp.errors import FedPGPError

INTERVAL = 0.5
"""Seconds between two looks."""

_watched_store: PrivateStore | None = None


@contextmanager
def watched(store: PrivateStore, job: Job, waited: float) -> Iterator[None]:
    """Watch over one message.

    Args:
        store: the process ends when a newer attempt claims it.
        job: its deadline ends the process, even when it hangs inside a library that
            never returns to Python.
        waited: seconds for which the server had the message before this process: no clock of
            day is asked, which may be set anew, or be another machine's.

    Raises:
        FedPGPError: the deadline has passed already (the message is a second try
            after the process was ended).
    """
    global _watched_store
    if job.deadline:
        left = job.deadline - waited
        if left <= 0:
            raise FedPGPError(f"took longer than runtime.round_timeout={job.deadline:g} seconds")
        told = sys.__stderr__ or open(os.devnull, "w")  # noqa: SIM115
        faulthandler.dump_traceback_later(left, exit=True, file=told)
    if _watched_store is None:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="watchdog").start()
    _watched_store = store
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_with_parent() -> None:
    """Have this process end when its parent does: a ServerApp whose SuperLink was killed would
    wait for it for ever."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while True:
        time.sleep(INTERVAL)
        try:
            superseded = not _watched_store.owned()
        except FedPGPError:
            superseded = False  # unreadable for the moment; whoever writes will find out
        if superseded or os.getppid() != parent:
            os._exit(1)
