"""A grid over Flower's that pulls replies side by side.

Flower (1.41) pulls all replies that nodes have announced one after the other, and waits for each
until the session of its upload ends (180 s), however long the round is. So one node that announces
a reply and does not send it holds up everybody's. Here each reply is pulled by itself: one that
cannot be read, or does not come, is no other node's loss.
"""

import threading
import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.invalid_reply import InvalidReply, checked

WORKERS = 32
"""Threads that pull, beside those that are held up."""

PATIENCE = 2.0
"""Seconds from which on a pull counts as held up: no look waits for it, and another thread takes
the place of its own."""

PULLS_A_SECOND = 500
"""Of many replies that have not come, about so many are looked for."""

FORGOTTEN = 60.0
"""Seconds after which a reply that nobody asks for any more is dropped."""


class ConcurrentGrid(Grid):
    """Pulls each reply by itself, several at a time.

    Args:
        grid: Flower's, of a deployment.
        patience: seconds from which on a pull counts as held up.
        workers: threads that pull, beside those that are held up.
    """

    def __init__(self, grid: Grid, patience: float = PATIENCE, workers: int = WORKERS):
        self._grid, self._patience, self._workers = grid, patience, workers
        self._lock = threading.Condition()
        self._queue: dict[str, None] = {}  # ids to pull, in order
        self._under_way: dict[str, float] = {}  # id -> since when a thread is pulling it
        self._replies: dict[str, Message] = {}
        self._broken: dict[str, Exception] = {}
        self._not_there: dict[str, float] = {}  # id -> when its reply had not come
        self._asked: dict[str, float] = {}  # id -> when somebody last asked for its reply

    def pull_each(self, message_ids: Sequence[str]) -> tuple[list[Message], dict[str, str]]:
        """Pull the replies to these messages that have come.

        Returns:
            (the replies, id -> why its reply cannot be read).

        Raises:
            Exception: what Flower raises where the connection is gone.
        """
        wanted = list(dict.fromkeys(message_ids))
        end = time.monotonic() + self._patience
        with self._lock:
            self._enqueue(wanted, time.monotonic())
            while (now := time.monotonic()) < end:
                self._start_workers(now)
                if not self._pending(wanted, now):
                    break
                self._lock.wait(min(end - now, self._patience / 4))
            replies = [self._replies.pop(id) for id in wanted if id in self._replies]
            broken = {id: self._broken.pop(id) for id in wanted if id in self._broken}
        if broken and not replies:
            self._grid.get_node_ids()  # raises where it is the connection, and no node's fault
        return replies, {id: _reason(error) for id, error in broken.items()}

    # Each of these is called by who holds the lock. -----------------------------------------------

    def _enqueue(self, wanted: Sequence[str], now: float) -> None:
        """Put those ids into the queue that are neither known nor were looked for just now."""
        self._asked |= dict.fromkeys(wanted, now)
        for id in [id for id, when in self._asked.items() if now - when > FORGOTTEN]:
            del self._asked[id]
        for kept in (self._queue, self._replies, self._broken, self._not_there):
            for id in [id for id in kept if id not in self._asked]:
                del kept[id]
        pause = len(wanted) / PULLS_A_SECOND
        for id in wanted:
            known = id in self._under_way or id in self._replies or id in self._broken
            if not known and now - self._not_there.get(id, -pause) >= pause:
                self._queue[id] = None

    def _start_workers(self, now: float) -> None:
        busy = sum(now - since < self._patience for since in self._under_way.values())
        for _ in range(min(self._workers - busy, len(self._queue))):
            threading.Thread(target=self._work, args=(self._next(),), daemon=True).start()

    def _next(self) -> str:
        id = next(iter(self._queue))
        del self._queue[id]
        self._under_way[id] = time.monotonic()
        return id

    def _pending(self, wanted: Iterable[str], now: float) -> bool:
        """Whether a look still waits for one of its ids."""
        return any(
            id in self._queue or now - self._under_way.get(id, -self._patience) < self._patience
            for id in wanted
        )

    # ----------------------------------------------------------------------------------------------

    def _work(self, id: str | None) -> None:
        """Pull a reply, and those in the queue after it."""
        while id is not None:
            reply = self._pull(id)
            with self._lock:
                now = time.monotonic()
                held_up = now - self._under_way.pop(id) >= self._patience
                if reply is None:
                    self._not_there[id] = now
                elif isinstance(reply, Exception):
                    self._broken[id] = reply
                else:
                    self._replies[id] = reply
                # Of a thread that was held up another one has taken the place.
                id = self._next() if self._queue and not held_up else None
                self._lock.notify_all()

    def _pull(self, id: str) -> Message | Exception | None:
        """Pull one reply; None: it has not come."""
        try:
            replies = list(self._grid.pull_messages([id]))
            # A node writes what its reply says of itself, and may claim to answer another's.
            if any(reply.metadata.reply_to_message_id != id for reply in replies):
                raise InvalidReply("its reply says that it answers another message")
        except Exception as error:
            return error
        return replies[0] if replies else None

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that can be read."""
        return self.pull_each(list(message_ids))[0]

    # What Flower's does. --------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self):
        return self._grid.get_nodes()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)

    def create_message(self, *args, **kwargs) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def set_run(self, run) -> None:
        self._grid.set_run(run)

    @property
    def run(self):
        return self._grid.run


def _reason(error: Exception) -> str:
    def again() -> None:
        raise error

    try:
        checked(again)
    except InvalidReply as reason:
        return str(reason)
