"""The nodes of a deployment that are connected: which client each one is, and what it has.

A Flower SuperNode is known to the server by a number alone. So each one that connects, or was
started again, is sent a handshake: it gets the run's configuration and says which client it is, or
why it cannot take part.

A client is on one node at a time: the first that says it is this client, and may be
(:mod:`strategies.client_keys`), for as long as it is connected; another one that says the same
waits until it is gone. A node that differs from the server is rejected until it is started again;
one where something went wrong is sent another handshake after a while.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from clients.messages import Job
from fedpgp.plain_text import called, one_line
from strategies.client_keys import ClientKeys, NodeInfo
from strategies.invalid_reply import InvalidReply, checked
from strategies.json_replies import read_handshake, read_row, unknown_row
from strategies.replies import pull_replies

INTERVAL = 2.0
"""Seconds between two looks at who is connected."""

RETRY_AFTER = 30.0
"""Seconds before a node where something went wrong is sent another handshake; twice as many after
every further time."""

HANDSHAKES = 8
"""Times in a row that is done, over about an hour."""


@dataclass
class NodeEntry:
    """A node that is connected.

    Attributes:
        since: when it connected, in Flower's words; empty before its first handshake, and when
            it is to be checked again.
        handshake: id of the handshake that it has not answered yet; empty when it has.
        silent: somebody waited for that reply in vain.
        client: which client it says it is; None before it said so.
        bound: it is that client, and nobody else can be while it is connected.
        rejection: why it cannot take part; empty when it can.
        duplicate: it cannot because another node is its client.
        failures: times in a row that something went wrong there.
        due: when it is sent another handshake, in monotonic seconds.
    """

    since: str = ""
    handshake: str = ""
    silent: bool = False
    client: int | None = None
    bound: bool = False
    rejection: str = ""
    duplicate: bool = False
    failures: int = 0
    due: float = math.inf


class NodeRegistry:
    """The connected nodes.

    Args:
        grid: Flower's own.
        clients: number of logical clients.
        job: of the handshake.
        configuration: of the federation, as JSON text.
        compatibility: what a node must have in common with the server
            (:func:`clients.node_config.compatibility`).
        table: the rows of clients whose images the server splits; None where their images are their
            own, and what they say of them is believed.
        warn: told about nodes that cannot take part, and clients that are on another node than
            before.
        keys: which node may be which client.
        updates_only: nodes tell nothing of their images (:func:`clients.disclosure.updates_only`).
        left: clients that have left for good.

    Attributes:
        rows: client -> its row of the table; without its counts where nobody knows them.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        job: Job,
        configuration: str,
        compatibility: Mapping[str, str],
        table: Sequence[Mapping] | None,
        warn: Callable[[str], None],
        keys: ClientKeys | None = None,
        *,
        updates_only: bool = False,
        left: Collection[int] = (),
    ):
        self._grid, self._clients, self._job, self._warn = grid, clients, job, warn
        self._table = (
            None if table is None else json.loads(json.dumps(list(table)))
        )  # as it comes from a node
        self._content = {
            "configuration": ConfigRecord({"json": configuration}),
            "compatibility": ConfigRecord({**compatibility}),
        }
        self.updates_only, self._left = updates_only, left
        self.keys = keys or ClientKeys()
        self.rows: dict[int, dict] = {}
        self._infos: dict[int, NodeInfo] = {}
        self._entries: dict[int, NodeEntry] = {}
        self._last: dict[int, int] = {}  # client -> the last node that was this client
        self._refreshed = -math.inf

    @property
    def node_of(self) -> dict[int, int]:
        """Client -> its node, for those that can be asked."""
        return {
            e.client: n
            for n, e in self._entries.items()
            if e.bound and not e.rejection and not e.silent
        }

    def why_missing(self, client: int) -> str:
        """Return why a client that is on no node cannot be asked."""
        holder = self._holder(client)
        if holder is None:
            return "its node is not connected"
        return self._entries[holder].rejection or "its node does not answer"

    @property
    def rejected(self) -> dict[int, str]:
        """Node -> why it cannot take part."""
        return {node: entry.rejection for node, entry in self._entries.items() if entry.rejection}

    @property
    def rejected_for_good(self) -> set[int]:
        """Clients whose own nodes cannot take part before somebody starts them again."""
        lasting = (
            e
            for e in self._entries.values()
            if e.rejection and not e.duplicate and e.due == math.inf
        )
        return {entry.client for entry in lasting if entry.client is not None} - set(self.node_of)

    @property
    def waiting(self) -> int:
        """Number of nodes whose reply to a handshake is worth waiting for."""
        return sum(bool(entry.handshake) and not entry.silent for entry in self._entries.values())

    def stop_waiting(self) -> None:
        """Take the nodes that have not answered yet for silent: nobody waits for them, or asks them
        anything, before they answer."""
        for entry in self._entries.values():
            entry.silent = bool(entry.handshake)

    def refresh(self) -> dict[int, str]:
        """Send handshakes to new nodes, read the replies, forget the nodes that went; do nothing
        when that was done just now.

        Returns:
            node -> what happened to it, for the nodes that have lost every message they had: they
            went, or were started again.
        """
        if time.monotonic() < self._refreshed + INTERVAL:
            return {}
        self._refreshed = time.monotonic()
        self._infos = {info.node_id: info for info in self._grid.get_nodes()}
        self.keys.note_names(self._infos.values())
        here = {node: info.last_activated_at for node, info in self._infos.items()}
        lost: dict[int, str] = {}
        for node in set(self._entries) - set(here):
            lost[node] = "its node went away"
            del self._entries[node]
        for node, since in here.items():
            entry = self._entries.setdefault(node, NodeEntry())
            if entry.since not in ("", since):
                lost[node] = "its node was started again"
                self._entries[node] = entry = NodeEntry(client=entry.client, bound=entry.bound)
            if entry.since != since or self._is_due(entry):
                self._send_handshake(node, entry, since)
        asked = {entry.handshake: node for node, entry in self._entries.items() if entry.handshake}
        if asked:
            replies, broken = pull_replies(self._grid, list(asked))
            for reply in replies:
                # A node writes what its reply says of itself.
                if (about := reply.metadata.reply_to_message_id) in asked:
                    self._on_reply(asked[about], reply)
            for id, reason in broken.items():
                self._on_reply(asked[id], reason)
        return lost

    def recheck(self, client: int) -> None:
        """Send a client's node another handshake: something went wrong with the client."""
        if client in self.node_of:
            self._entries[self.node_of[client]].since = ""
            self._refreshed = -math.inf  # before it is sent anything else

    def _is_due(self, entry: NodeEntry) -> bool:
        if not entry.rejection or entry.handshake:
            return False
        free = entry.duplicate and self._holder(entry.client) is None
        return free or entry.due <= time.monotonic()

    def _holder(self, client: int) -> int | None:
        """Return the node that is a client."""
        return next(
            (node for node, e in self._entries.items() if e.bound and e.client == client), None
        )

    def _send_handshake(self, node: int, entry: NodeEntry, since: str) -> None:
        content = RecordDict({"job": self._job.record(), **self._content})
        for id in self._grid.push_messages(
            [Message(content, dst_node_id=node, message_type=MessageType.QUERY)]
        ):
            if id:
                entry.since, entry.handshake = since, id

    def _on_reply(self, node: int, reply: Message | str) -> None:
        """Take a node's reply to its handshake; a text says why it cannot be read."""
        entry = self._entries[node]
        entry.handshake, entry.silent = "", False
        client = None
        try:
            if isinstance(reply, str):
                raise InvalidReply(reply)
            if reply.has_error():
                reason = one_line(reply.error.reason or "failed without saying why")
                self._reject(
                    entry, f"a node cannot take part: {reason}", entry.client, transient=True
                )
                return
            said = read_handshake(reply.content)
            client = said["client"]
            holder = self._holder(client)
            if not client < self._clients:
                self._reject(
                    entry, f"a node says it is client {client}; there are {self._clients}, from 0"
                )
            elif client in self._left:
                reason = (
                    f"the node of client {client} cannot take part: the client has left this run "
                    "for good; a site that comes back is a new client, with a key of its own"
                )
                self._reject(entry, reason, client)
            elif objection := self.keys.objection(client, self._infos[node]):
                reason = f"a node cannot take part: {objection}"
                if holder not in (None, node):
                    reason = (
                        f"two nodes say they are client {client}, and node {holder} is: "
                        f"{objection}; each node needs a client-id of its own in --node-config"
                    )
                self._reject(entry, reason)
            elif rejection := said.get("rejection"):
                who = called({"id": client, "name": said["name"]})
                reason = f"the node of {who} cannot take part: {rejection}"
                self._reject(entry, reason, client, transient=said["transient"])
            elif holder not in (None, node) and not self._displaced(holder, client):
                reason = (
                    f"two nodes say they are client {client}: node {holder} is, and node {node} "
                    "has to wait until that one is gone; each node needs a client-id of its own "
                    "in --node-config"
                )
                self._reject(entry, reason, client, duplicate=True)
            else:
                row = checked(lambda: self._row(client, said.get("row")))
                self.rows[client] = {**row, "name": said["name"]} if said["name"] else row
                self._bind(node, client)
        except InvalidReply as reason:
            self._reject(entry, f"a node cannot take part: {reason}", client)

    def _row(self, client: int, said: object) -> dict:
        """Return a client's row of the table, by what its node says."""
        if not self.updates_only:
            return read_row(said, client, self._table)
        return unknown_row(client) if self._table is None else dict(self._table[client])

    def _displaced(self, holder: int, client: int) -> bool:
        """Return whether the node that is a client may be it no longer: another was registered
        since."""
        objection = self.keys.objection(client, self._infos[holder])
        if objection:
            self._reject(self._entries[holder], f"a node cannot take part: {objection}")
        return bool(objection)

    def _bind(self, node: int, client: int) -> None:
        self._entries[node] = NodeEntry(self._entries[node].since, client=client, bound=True)
        self.keys.bind(client, self._infos[node])
        if self._last.get(client, node) != node:
            who = called(self.rows[client])
            self._warn(f"{who} is on node {node} now; before, it was on node {self._last[client]}")
        self._last[client] = node

    def _reject(
        self,
        entry: NodeEntry,
        reason: str,
        client: int | None = None,
        *,
        transient: bool = False,
        duplicate: bool = False,
    ) -> None:
        """Reject a node.

        Args:
            entry: the node.
            reason: why, for a person.
            client: which client it says it is.
            transient: something went wrong there, which may pass: it is sent another handshake
                after a while, and its client is kept for it.
            duplicate: another node is that client.
        """
        entry.bound = entry.bound and transient and client == entry.client
        entry.client, entry.duplicate, entry.due = client, duplicate, math.inf
        entry.failures = entry.failures + 1 if transient else 0
        if 0 < entry.failures < HANDSHAKES:
            entry.due = time.monotonic() + RETRY_AFTER * 2 ** (entry.failures - 1)
            reason += "; it is asked again from time to time"
        if reason != entry.rejection:  # and not every time
            self._warn(reason)
        entry.rejection = reason
