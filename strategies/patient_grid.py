"""A grid over Flower's that pulls replies side by side.

Flower (1.41) pulls all replies that nodes have announced one after the other, and waits for each
until the session of its upload ends (180 s), however long the round is. So one node that announces
a reply and does not send it holds up everybody's.
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.invalid_reply import InvalidReply, checked

AT_WORK = 64
"""Most pulls that are begun at a look; of more messages, several are pulled together."""

PATIENCE = 2.0
"""Seconds that a look waits for the pulls it has begun."""


class PatientGrid(Grid):
    """Pulls each reply in a thread of its own; one that does not come is left behind.

    Args:
        grid: Flower's, of a deployment.
        patience: seconds that a look waits for the pulls it has begun.
    """

    def __init__(self, grid: Grid, patience: float = PATIENCE):
        self._grid, self._patience = grid, patience
        self._lock = threading.Condition()
        self._under_way: set[str] = set()  # ids that a thread is pulling
        self._replies: dict[str, Message] = {}
        self._broken: dict[str, Exception] = {}

    def pull_each(self, message_ids: Sequence[str]) -> tuple[list[Message], dict[str, str]]:
        """Pull the replies to these messages that have come.

        Returns:
            (the replies, id -> why its reply cannot be read).

        Raises:
            Exception: what Flower raised for all of several messages: the connection is gone.
        """
        wanted = list(dict.fromkeys(message_ids))
        with self._lock:
            known = {*self._under_way, *self._replies, *self._broken}
            idle = [id for id in wanted if id not in known]
            self._under_way |= set(idle)
        size = max(1, math.ceil(len(idle) / AT_WORK))
        for start in range(0, len(idle), size):
            ids = idle[start : start + size]
            threading.Thread(target=self._pull, args=(ids,), daemon=True).start()
        end = time.monotonic() + self._patience
        with self._lock:
            while self._under_way & set(idle) and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)
            replies = [self._replies.pop(id) for id in wanted if id in self._replies]
            broken = {id: self._broken.pop(id) for id in wanted if id in self._broken}
        if len(broken) == len(wanted) > 1:
            raise next(iter(broken.values()))
        return replies, {id: _reason(error) for id, error in broken.items()}

    def _pull(self, ids: Sequence[str]) -> None:
        found: dict[str, Message] = {}
        broken: dict[str, Exception] = {}
        try:
            for reply in self._grid.pull_messages(list(ids)):
                # A node writes what its reply says of itself, and may claim to answer another's.
                about = reply.metadata.reply_to_message_id
                if about in ids:
                    found[about] = reply
                elif len(ids) == 1:
                    broken[ids[0]] = InvalidReply("its reply says that it answers another message")
        except Exception as error:
            broken = dict.fromkeys(ids, error)
        with self._lock:
            self._replies |= found
            self._broken |= broken
            self._under_way -= set(ids)
            self._lock.notify_all()

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
