"""Who lives where, in a deployment: the nodes that are connected, which client each one is, and what it has.

A Flower SuperNode is known to the server by a number alone. So each one that connects, or was started again, is
greeted: it gets the run's configuration and says which client lives there, or why it cannot take part.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from clients.wire import Job

INTERVAL = 2.0
"""Seconds between two looks at who is connected."""


class Roll:
    """The connected nodes.

    Args:
        grid: Flower's own.
        clients: number of logical clients.
        job: of the greeting.
        configuration: of the federation, as JSON text.
        identity: what a node must have in common with the server (:func:`clients.site.identity`).
        table: the rows of clients whose images the server deals; None where their pictures are their own, and what they
            say of them is believed.
        warn: told about nodes that cannot take part.

    Attributes:
        homes: client -> node.
        rows: client -> its row of the table.
        refused: node -> why it cannot take part.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        job: Job,
        configuration: str,
        identity: Mapping[str, str],
        table: Sequence[Mapping] | None,
        warn: Callable[[str], None],
    ):
        self._grid, self._clients, self._job, self._warn = grid, clients, job, warn
        self._table = None if table is None else json.loads(json.dumps(list(table)))  # as it comes from a node
        self._content = {"configuration": ConfigRecord({"json": configuration}), "identity": ConfigRecord({**identity})}
        self.homes: dict[int, int] = {}
        self.rows: dict[int, dict] = {}
        self.refused: dict[int, str] = {}
        self._since: dict[int, str] = {}  # node -> when it connected
        self._greeted: dict[str, int] = {}  # id of a greeting without an answer yet -> node
        self._looked = 0.0

    @property
    def waiting(self) -> bool:
        """True while a greeted node has not answered yet."""
        return bool(self._greeted)

    def look(self) -> dict[int, str]:
        """Greets who came, hears who answered, forgets who went; does nothing when it did so just now.

        Returns:
            node -> what happened to it, for the nodes that have lost every message they had: they went, or were started
            again.
        """
        if time.monotonic() < self._looked + INTERVAL:
            return {}
        self._looked = time.monotonic()
        here = {info.node_id: info.last_activated_at for info in self._grid.get_nodes()}
        lost: dict[int, str] = {}
        for node in set(self._since) - set(here):
            lost[node] = "its node went away"
            self._forget(node)
        for node, since in here.items():
            if self._since.get(node) != since:
                if self._since.get(node):  # not one that is only doubted
                    lost[node] = "its node was started again"
                self._greet(node, since)
        if self._greeted:
            for reply in self._grid.pull_messages(list(self._greeted)):
                self._hear(self._greeted.pop(reply.metadata.reply_to_message_id), reply)
        return lost

    def doubt(self, client: int) -> None:
        """Something went wrong with a client: its node is greeted again."""
        if client in self.homes:
            self._since[self.homes[client]] = ""
            self._looked = -INTERVAL  # before it is sent anything else

    def _greet(self, node: int, since: str) -> None:
        self._greeted = {id: other for id, other in self._greeted.items() if other != node}
        self.refused.pop(node, None)
        content = RecordDict({"job": self._job.record(), **self._content})
        for id in self._grid.push_messages([Message(content, dst_node_id=node, message_type=MessageType.QUERY)]):
            if id:
                self._since[node] = since
                self._greeted[id] = node

    def _hear(self, node: int, reply: Message) -> None:
        try:
            if reply.has_error():
                raise ValueError(reply.error.reason)
            answer = json.loads(reply.content["answer"]["json"])
            client = int(answer["client"])
            if refusal := answer.get("refused"):
                self._refuse(node, f"the node of client {client} cannot take part: {refusal}")
            elif not 0 <= client < self._clients:
                self._refuse(node, f"a node says it is client {client}; there are {self._clients}, from 0")
            elif self.homes.get(client, node) != node:
                self._refuse(node, f"two nodes say they are client {client}; only the first takes part")
            else:
                self.rows[client] = self._checked(client, answer["row"])
                self.homes = {c: n for c, n in self.homes.items() if n != node} | {client: node}
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(node, f"a node cannot take part: its answer cannot be read ({error})")

    def _checked(self, client: int, row: Mapping) -> dict:
        """A client's row of the table.

        Raises:
            ValueError, KeyError, TypeError: it is none, or not what the server dealt.
        """
        if self._table is not None and row != self._table[client]:
            raise ValueError(f"client {client} does not have the images that it was dealt")
        for name in ("train_images", "test_images"):
            if isinstance(row[name], bool) or not isinstance(row[name], int) or row[name] < 0:
                raise ValueError(f"client {client} says {name}={row[name]!r}")
        if not isinstance(row["domain"], str | None) or not isinstance(row["trains"], bool):
            raise ValueError(f"the row of client {client} is none")
        return {**row, "id": client}

    def _refuse(self, node: int, reason: str) -> None:
        self._forget_home(node)
        self.refused[node] = reason
        self._warn(reason)

    def _forget(self, node: int) -> None:
        self._forget_home(node)
        self._since.pop(node, None)
        self.refused.pop(node, None)
        self._greeted = {id: other for id, other in self._greeted.items() if other != node}

    def _forget_home(self, node: int) -> None:
        self.homes = {client: home for client, home in self.homes.items() if home != node}
