"""Replies that cannot be read, one node's fault, without the loss of the others."""

from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.concurrent_grid import ConcurrentGrid
from strategies.invalid_reply import InvalidReply, checked


def pull_replies(grid: Grid, ids: Sequence[str]) -> tuple[list[Message], dict[str, str]]:
    """Pull the replies to these messages that have come.

    Where Flower raises on one of them, they are pulled one by one.

    Returns:
        (the replies, id -> why its reply cannot be read).

    Raises:
        Exception: what Flower raises where the connection is gone.
    """
    if isinstance(grid, ConcurrentGrid):
        return grid.pull_each(ids)
    try:
        return list(grid.pull_messages(list(ids))), {}
    except Exception:
        replies: list[Message] = []
        broken: dict[str, str] = {}
        for id in ids:
            try:
                replies += checked(lambda id=id: list(grid.pull_messages([id])))
            except InvalidReply as reason:
                broken[id] = str(reason)
        if broken and not replies:
            grid.get_node_ids()  # raises where it is the connection, and no node's fault
        return replies, broken
