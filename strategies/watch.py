"""How far the clients are while the server waits for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import MessageType

from clients.progress import CLIENTS, clear_progress, read_progress

LOOK = 0.5
"""Seconds between two looks."""
DONE = {MessageType.TRAIN: "clients trained", MessageType.EVALUATE: "clients evaluated"}
"""What is counted of a kind of message."""
SET_UP = "clients set up"
"""What is counted before the first round (and before the next one of a resumed run)."""

Tell = Callable[[int, int, str], None]


class Watch:
    """Looks after the clients in a thread of its own, since the runtime may do their work in the
    server's.

    Args:
        folder: of a simulation's private states, where its workers tell how far they are;
            None: only replies count.
        tell: called with (done, total, what).
    """

    def __init__(self, folder: Path | None, tell: Tell):
        self._folder, self._tell = folder, tell

    @contextmanager
    def during(
        self, server_round: int, kind: str, ask: str = ""
    ) -> Iterator[Callable[[int, int], None]]:
        """Tell for as long as the block lasts; give what is to be called with (clients
        answered, clients asked).

        Args:
            server_round: the number of the round.
            kind: of the messages, Flower's.
            ask: what a query is for, as in :class:`clients.messages.Job`.
        """
        what = (
            SET_UP
            if ask == "clients"
            else f"round {server_round}, {DONE.get(kind, 'clients that answered')}"
        )
        answered, ended = [0, 0], threading.Event()

        def replied(done: int, total: int) -> None:
            answered[:] = done, total

        def look() -> None:
            most = 0
            while not ended.wait(LOOK):
                counts = read_progress(self._folder) if self._folder else []
                if others := [each for each in counts if each.what != CLIENTS]:
                    slowest = min(others, key=lambda each: each.done / max(1, each.total))
                    self._tell(slowest.done, slowest.total, slowest.what)
                    continue
                done, total = answered
                total = max(total, sum(each.total for each in counts))
                # A worker's count goes a moment before its reply is there.
                most = max(most, min(total, done + sum(each.done for each in counts)))
                if total:
                    self._tell(most, total, what)

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        try:
            yield replied
        finally:
            ended.set()
            thread.join()
            if self._folder:
                clear_progress(self._folder)
