"""Who lives where, in a deployment: the nodes that are connected, which client each one is, and what it has.

A Flower SuperNode is known to the server by a number alone. So each one that connects, or was started again, is
greeted: it gets the run's configuration and says which client lives there, or why it cannot take part.

A client is on one node at a time: the first that says it is this client, and may be
(:mod:`strategies.client_keys`), holds its seat for as long as it is connected; another one that says
the same waits until it is gone. A node that differs from the server is refused until it is started
again; one where something went wrong is greeted again after a while.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from clients.messages import Job
from fedpgp.plain_text import called, one_line
from strategies.client_keys import NodeInfo, Seats
from strategies.pulling import pull
from strategies.reply_checks import Unusable, contained, read_greeting, read_row

INTERVAL = 2.0
"""Seconds between two looks at who is connected."""

AGAIN = 30.0
"""Seconds before a node where something went wrong is greeted again; twice as many after every further time."""

GREETINGS = 8
"""Times in a row that is done, over about an hour."""


@dataclass
class Guest:
    """A node that is connected.

    Attributes:
        since: when it connected, in Flower's words; empty before it is greeted, and when it is doubted.
        greeting: id of the greeting that it has not answered yet; empty when it has.
        silent: somebody waited for that answer in vain.
        client: which client it says it is; None before it said so.
        seated: it is that client, and nobody else can be while it is connected.
        refusal: why it cannot take part; empty when it can.
        rival: it cannot because another node holds its client's seat.
        failures: times in a row that something went wrong there.
        due: when it is greeted again, in monotonic seconds.
    """

    since: str = ""
    greeting: str = ""
    silent: bool = False
    client: int | None = None
    seated: bool = False
    refusal: str = ""
    rival: bool = False
    failures: int = 0
    due: float = math.inf


class Roll:
    """The connected nodes.

    Args:
        grid: Flower's own.
        clients: number of logical clients.
        job: of the greeting.
        configuration: of the federation, as JSON text.
        compatibility: what a node must have in common with the server (:func:`clients.node_config.compatibility`).
        table: the rows of clients whose images the server splits; None where their images are their own, and what
            they say of them is believed.
        warn: told about nodes that cannot take part, and clients that are on another node than before.
        seats: whose the clients' seats are.

    Attributes:
        rows: client -> its row of the table.
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
        seats: Seats | None = None,
    ):
        self._grid, self._clients, self._job, self._warn = grid, clients, job, warn
        self._table = None if table is None else json.loads(json.dumps(list(table)))  # as it comes from a node
        self._content = {
            "configuration": ConfigRecord({"json": configuration}),
            "compatibility": ConfigRecord({**compatibility}),
        }
        self.seats = seats or Seats()
        self.rows: dict[int, dict] = {}
        self._infos: dict[int, NodeInfo] = {}
        self._guests: dict[int, Guest] = {}
        self._last: dict[int, int] = {}  # client -> the last node that held its seat
        self._looked = -math.inf

    @property
    def homes(self) -> dict[int, int]:
        """Client -> its node, for those that can be asked."""
        return {g.client: n for n, g in self._guests.items() if g.seated and not g.refusal and not g.silent}

    def absence(self, client: int) -> str:
        """Why a client without a home cannot be asked."""
        holder = self._holder(client)
        if holder is None:
            return "its node is not connected"
        return self._guests[holder].refusal or "its node does not answer"

    @property
    def refused(self) -> dict[int, str]:
        """Node -> why it cannot take part."""
        return {node: guest.refusal for node, guest in self._guests.items() if guest.refusal}

    @property
    def hopeless(self) -> set[int]:
        """Clients whose own nodes cannot take part before somebody starts them again."""
        lasting = (g for g in self._guests.values() if g.refusal and not g.rival and g.due == math.inf)
        return {guest.client for guest in lasting if guest.client is not None} - set(self.homes)

    @property
    def waiting(self) -> int:
        """Number of greeted nodes whose answer is worth waiting for."""
        return sum(bool(guest.greeting) and not guest.silent for guest in self._guests.values())

    def wait_no_more(self) -> None:
        """The nodes that have not answered yet are taken for silent: nobody waits for them, or asks them anything,
        before they answer."""
        for guest in self._guests.values():
            guest.silent = bool(guest.greeting)

    def look(self) -> dict[int, str]:
        """Greets who came, hears who answered, forgets who went; does nothing when it did so just now.

        Returns:
            node -> what happened to it, for the nodes that have lost every message they had: they went, or were started
            again.
        """
        if time.monotonic() < self._looked + INTERVAL:
            return {}
        self._looked = time.monotonic()
        self._infos = {info.node_id: info for info in self._grid.get_nodes()}
        self.seats.see(self._infos.values())
        here = {node: info.last_activated_at for node, info in self._infos.items()}
        lost: dict[int, str] = {}
        for node in set(self._guests) - set(here):
            lost[node] = "its node went away"
            del self._guests[node]
        for node, since in here.items():
            guest = self._guests.setdefault(node, Guest())
            if guest.since not in ("", since):
                lost[node] = "its node was started again"
                self._guests[node] = guest = Guest(client=guest.client, seated=guest.seated)
            if guest.since != since or self._has_another_chance(guest):
                self._greet(node, guest, since)
        greeted = {guest.greeting: node for node, guest in self._guests.items() if guest.greeting}
        if greeted:
            replies, broken = pull(self._grid, list(greeted))
            for reply in replies:
                self._hear(greeted[reply.metadata.reply_to_message_id], reply)
            for id, reason in broken.items():
                self._hear(greeted[id], reason)
        return lost

    def doubt(self, client: int) -> None:
        """Something went wrong with a client: its node is greeted again."""
        if client in self.homes:
            self._guests[self.homes[client]].since = ""
            self._looked = -math.inf  # before it is sent anything else

    def _has_another_chance(self, guest: Guest) -> bool:
        if not guest.refusal or guest.greeting:
            return False
        free = guest.rival and self._holder(guest.client) is None
        return free or guest.due <= time.monotonic()

    def _holder(self, client: int) -> int | None:
        """The node that holds a client's seat."""
        return next((node for node, g in self._guests.items() if g.seated and g.client == client), None)

    def _greet(self, node: int, guest: Guest, since: str) -> None:
        content = RecordDict({"job": self._job.record(), **self._content})
        for id in self._grid.push_messages([Message(content, dst_node_id=node, message_type=MessageType.QUERY)]):
            if id:
                guest.since, guest.greeting = since, id

    def _hear(self, node: int, reply: Message | str) -> None:
        """Takes a node's answer; a text says why it cannot be read."""
        guest = self._guests[node]
        guest.greeting, guest.silent = "", False
        client = None
        try:
            if isinstance(reply, str):
                raise Unusable(reply)
            if reply.has_error():
                reason = one_line(reply.error.reason or "failed without saying why")
                self._refuse(guest, f"a node cannot take part: {reason}", guest.client, passing=True)
                return
            answer = read_greeting(reply.content)
            client = answer["client"]
            holder = self._holder(client)
            if not client < self._clients:
                self._refuse(guest, f"a node says it is client {client}; there are {self._clients}, from 0")
            elif objection := self.seats.objection(client, self._infos[node]):
                reason = f"a node cannot take part: {objection}"
                if holder not in (None, node):
                    reason = (
                        f"two nodes say they are client {client}, and node {holder} is: {objection}; each node needs a "
                        "client-id of its own in --node-config"
                    )
                self._refuse(guest, reason)
            elif refusal := answer.get("refused"):
                who = called({"id": client, "name": answer["name"]})
                reason = f"the node of {who} cannot take part: {refusal}"
                self._refuse(guest, reason, client, passing=answer["passing"])
            elif holder not in (None, node) and not self._displaced(holder, client):
                reason = (
                    f"two nodes say they are client {client}: node {holder} is, and node {node} has to wait until that "
                    "one is gone; each node needs a client-id of its own in --node-config"
                )
                self._refuse(guest, reason, client, rival=True)
            else:
                row = contained(lambda: read_row(answer.get("row"), client, self._table))
                self.rows[client] = {**row, "name": answer["name"]} if answer["name"] else row
                self._seat(node, client)
        except Unusable as reason:
            self._refuse(guest, f"a node cannot take part: {reason}", client)

    def _displaced(self, holder: int, client: int) -> bool:
        """Whether the node that holds a client's seat has to leave it: another was registered as that client since."""
        objection = self.seats.objection(client, self._infos[holder])
        if objection:
            self._refuse(self._guests[holder], f"a node cannot take part: {objection}")
        return bool(objection)

    def _seat(self, node: int, client: int) -> None:
        self._guests[node] = Guest(self._guests[node].since, client=client, seated=True)
        self.seats.take(client, self._infos[node])
        if self._last.get(client, node) != node:
            who = called(self.rows[client])
            self._warn(f"{who} is on node {node} now; before, it was on node {self._last[client]}")
        self._last[client] = node

    def _refuse(
        self, guest: Guest, reason: str, client: int | None = None, *, passing: bool = False, rival: bool = False
    ) -> None:
        """Refuses a node.

        Args:
            guest: the node.
            reason: why, for a person.
            client: which client it says it is.
            passing: something went wrong there, which may pass: it is greeted again after a while, and keeps its seat.
            rival: another node holds that client's seat.
        """
        guest.seated = guest.seated and passing and client == guest.client
        guest.client, guest.rival, guest.due = client, rival, math.inf
        guest.failures = guest.failures + 1 if passing else 0
        if 0 < guest.failures < GREETINGS:
            guest.due = time.monotonic() + AGAIN * 2 ** (guest.failures - 1)
            reason += "; it is asked again from time to time"
        if reason != guest.refusal:  # and not every time
            self._warn(reason)
        guest.refusal = reason
