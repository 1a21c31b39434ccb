"""Replies that cannot be read, one node's fault, without the loss of the others."""

from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.invalid_reply import InvalidReply, checked
from strategies.patient_grid import PatientGrid


def pull_replies(grid: Grid, ids: Sequence[str]) -> tuple[list[Message], dict[str, str]]:
    """Pull the replies to these messages that have come.

    Where Flower raises on one of them, they are pulled one by one. When each of several
    raises, it is not the nodes'
    fault: the connection is gone.

    Returns:
        (the replies, id -> why its reply cannot be read).

    Raises:
        Exception: what Flower raised for all of several messages.
    """
    if isinstance(grid, PatientGrid):
        return grid.pull_each(ids)
    try:
        return list(grid.pull_messages(list(ids))), {}
    except Exception as error:
        replies: list[Message] = []
        broken: dict[str, str] = {}
        for id in ids:
            try:
                replies += checked(lambda id=id: list(grid.pull_messages([id])))
            except InvalidReply as reason:
                broken[id] = str(reason)
        if len(broken) == len(ids) > 1:
            raise error
        return replies, broken
