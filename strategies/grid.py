"""A Flower ``Grid`` whose node ids are the logical clients.

A Flower strategy asks a grid for node ids, writes a message for each and gets a reply from each.
Here the ids it sees are logical clients; underneath, the messages for the clients of one node
travel as one (:mod:`clients.messages`). So any Flower strategy works unchanged, and ten thousand
simulated clients cost as many messages a round as there are nodes.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from clients.messages import Job, count_bytes, pack
from fedpgp.plain_text import one_line
from strategies.exchange import CLIENT_FAILED, NO_REPLY, Exchange, Interrupted
from strategies.invalid_reply import InvalidReply, checked
from strategies.local_grid import with_id
from strategies.node_registry import NodeRegistry
from strategies.replies import pull_replies
from strategies.reply_checks import open_reply

NOT_CONNECTED = -1
"""The node of clients that are not connected."""

RESTART_PAUSE = 1.0
"""Seconds before a message is sent again to a process that is being started again."""

LONGEST_REASON = 2**16
"""Characters of an error's text, from its end, that are looked at."""


@dataclass(frozen=True)
class PackedMessage:
    """Logical messages of one kind that travel to a node together.

    Attributes:
        messages: client -> message.
        tries: times before that its node failed on it.
        due: not to be sent before (monotonic seconds).
    """

    node: int
    kind: str
    messages: dict[int, Message]
    tries: int = 0
    due: float = 0.0


class CohortGrid(Grid):
    """Packs the messages of logical clients by node, and unpacks the replies.

    Args:
        grid: the real grid.
        clients: number of logical clients; their ids are 0 … clients-1.
        job: what every message carries beside the strategy's records; ``server_round``, ``clients``
            and ``committed`` are filled in.
        registry: which node each client is on (a deployment); without it any node may do
            any client (a simulation), and they are assigned largest first to the node
            with the least work so far.
        nodes: how many nodes there will be; a simulation's come up one by one.
        work: how much work each client is, for that assignment; equal without it.
        stop: set when the person wants to stop; waiting then ends with :class:`Interrupted`.
        progress: called with (clients answered, clients asked) while waiting.
        poll: seconds between two looks for replies.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        job: Job,
        *,
        registry: NodeRegistry | None = None,
        nodes: int = 1,
        work: Sequence[float] | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        poll: float = 0.1,
    ):
        self.inner, self.clients, self.job = grid, clients, job
        self.registry, self.nodes, self.work = registry, nodes, work
        self.stop, self.progress = stop or threading.Event(), progress
        self.poll = poll
        self.available: list[int] = list(range(clients))
        self.committed: dict[int, int] = {}
        self.exchange = Exchange()
        self._sent: dict[str, PackedMessage] = {}  # id of a packed message -> what is in it
        self._paused: list[PackedMessage] = []
        self._end: float | None = None
        self._replies: dict[str, Message] = {}  # id of a logical message -> its reply

    # What a strategy sees. ------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """Return the logical clients a strategy may choose from: ``available``, all of them unless
        the server narrowed it."""
        return list(self.available)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return one reply for each message, sorted by client; a client without a reply gets an
        error reply that says why.

        Raises:
            Interrupted: ``stop`` was set.
        """
        self._end = None if timeout is None else time.monotonic() + timeout
        ids = set(self.push_messages(messages))
        asked = len(ids)
        self.progress(0, asked)
        replies: list[Message] = []
        while True:
            self._check_stop()
            news = self.pull_messages(ids)
            replies += news
            ids -= {reply.metadata.reply_to_message_id for reply in news}
            if news:
                self.progress(len(replies), asked)
            if not ids:
                break
            if self._left() <= 0:
                replies += self._give_up(
                    ids, f"no reply within {timeout:g} seconds (runtime.round_timeout)"
                )
                break
            if not news:
                self._wait(self.poll)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Pack messages by node and send them; return one id for each logical message."""
        logical = {message.metadata.dst_node_id: with_id(message) for message in messages}
        self.exchange.traffic.down += count_bytes(message.content for message in logical.values())
        by_kind: dict[str, dict[int, Message]] = {}
        for client, message in logical.items():
            by_kind.setdefault(message.metadata.message_type, {})[client] = message
        for kind, group in by_kind.items():
            for node, clients in self._assign(sorted(group)).items():
                self._push(PackedMessage(node, kind, {client: group[client] for client in clients}))
        return [message.metadata.message_id for message in logical.values()]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these logical messages that have come so far."""
        due = [packed for packed in self._paused if packed.due <= time.monotonic()]
        self._paused = [packed for packed in self._paused if packed not in due]
        for packed in due:
            self._push(packed)
        for node, reason in self.registry.refresh().items() if self.registry else ():
            for id in [id for id, packed in self._sent.items() if packed.node == node]:
                self._node_failed(self._sent.pop(id), reason)
        if self._sent:
            replies, broken = pull_replies(self.inner, list(self._sent))
            for reply in replies:
                self._take(reply)
            for id, reason in broken.items():
                if id in self._sent:
                    self._fail(self._sent.pop(id).messages, CLIENT_FAILED, reason)
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    # Underneath. ----------------------------------------------------------------------------------

    def _assign(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """Return node -> its clients, ascending."""
        if self.registry is not None:
            node_of = self.registry.node_of
            assigned: dict[int, list[int]] = {}
            for client in clients:
                assigned.setdefault(node_of.get(client, NOT_CONNECTED), []).append(client)
            return assigned
        while len(nodes := sorted(self.inner.get_node_ids())) < self.nodes:
            self._check_stop()
            time.sleep(0.02)
        work = self.work if self.work is not None else [1.0] * self.clients
        return dict(zip(nodes, balance(clients, work, len(nodes)), strict=False))

    def _push(self, packed: PackedMessage) -> None:
        if packed.node == NOT_CONNECTED:
            for client, message in packed.messages.items():
                self._fail({client: message}, NO_REPLY, self.registry.why_missing(client))
            return
        clients = tuple(sorted(packed.messages))
        job = replace(
            self.job,
            clients=clients,
            committed=tuple(self.committed.get(c, 0) for c in clients),
            deadline=min(self.job.deadline, self._left()),
        )
        content = pack(job, {client: packed.messages[client].content for client in clients})
        self.exchange.traffic.wire_down += count_bytes([content])
        ids = list(
            self.inner.push_messages(
                [Message(content, dst_node_id=packed.node, message_type=packed.kind)]
            )
        )
        if ids and ids[0]:
            self._sent[ids[0]] = packed
        else:
            self._fail(packed.messages, NO_REPLY, "its node is not connected")

    def _take(self, reply: Message) -> None:
        packed = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if packed is None:
            return  # of an exchange that was given up
        if reply.has_error():
            self._node_failed(packed, reply.error.reason or "")
            return
        try:
            opened = open_reply(reply.content, packed.messages, failures=self.registry is None)
            wire_up = checked(lambda: count_bytes([reply.content]))
        except InvalidReply as reason:
            self._fail(packed.messages, CLIENT_FAILED, str(reason))
            return
        if (
            self.registry is not None
        ):  # a real node chooses neither the name it goes by nor the time it took
            opened.account["process"] = f"client {min(packed.messages)}"
            passed, said = time.monotonic() - self.exchange.began, opened.account["seconds"]
            opened.account["seconds"] = passed if self.registry.updates_only else min(said, passed)
        self.exchange.accounts.append(opened.account)
        self.exchange.kept.update(opened.account["kept"])
        self.exchange.traffic.wire_up += wire_up
        self.exchange.traffic.up += opened.up
        for client, message in packed.messages.items():
            if client in opened.contents:
                self._reply(message, opened.contents[client])
            else:
                self._fail({client: message}, CLIENT_FAILED, opened.rejected[client])

    def _node_failed(self, packed: PackedMessage, reason: str) -> None:
        """A whole node's reply is missing: its process died, perhaps through one client. Each
        client gets a second try, alone.

        Training is a function of the message and the last committed state, so a second
        try gives the same numbers.
        """
        later = time.monotonic() + RESTART_PAUSE
        if packed.tries == 0:
            alone = [{client: message} for client, message in sorted(packed.messages.items())]
            self._paused += [replace(packed, messages=one, tries=1, due=later) for one in alone]
        else:
            self._fail(packed.messages, CLIENT_FAILED, readable(reason))

    def _left(self) -> float:
        return math.inf if self._end is None else self._end - time.monotonic()

    def _reply(self, message: Message, content: RecordDict | Error) -> None:
        self._replies[message.metadata.message_id] = Message(content, reply_to=message)

    def _fail(self, messages: Mapping[int, Message], code: int, reason: str) -> None:
        for client, message in messages.items():
            self._reply(message, Error(code, f"client {client}: {reason}"))

    def _give_up(self, ids: set[str], reason: str) -> list[Message]:
        for packed in [*self._sent.values(), *self._paused]:
            self._fail(packed.messages, NO_REPLY, reason)
        self._sent, self._paused = {}, []
        return [self._replies.pop(i) for i in ids if i in self._replies]

    def _wait(self, seconds: float) -> None:
        """Wait for a reply: until there is one, where the grid can tell."""
        wait = getattr(self.inner, "wait", time.sleep)
        wait(seconds)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted

    # The rest of the interface. -------------------------------------------------------------------

    def set_run(self, run) -> None:
        self.inner.set_run(run)

    @property
    def run(self):
        return self.inner.run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def balance(clients: Sequence[int], work: Sequence[float], nodes: int) -> list[list[int]]:
    """Assign clients to at most ``nodes`` parts of about equal work: largest first, to the
    part with the least so far.

    Deterministic: ties go to the lower client and the lower part. Empty parts are left out.
    """
    parts: list[list[int]] = [[] for _ in range(nodes)]
    loads = [0.0] * nodes
    for client in sorted(clients, key=lambda c: (-work[c], c)):
        lightest = min(range(nodes), key=lambda i: (loads[i], len(parts[i]), i))
        parts[lightest].append(client)
        loads[lightest] += work[client]
    return [sorted(part) for part in parts if part]


def readable(reason: str) -> str:
    """Return the useful part of an error text that went through Flower: the last line that says
    something."""
    reason = reason[-LONGEST_REASON:]
    said = reason.rpartition("occurred. Message: ")[2]
    lines = [line.strip(" '<>") for line in said.splitlines()]
    useful = next(
        (line for line in reversed(lines) if line and set(line) != {"^"}),
        "failed without saying why",
    )
    return one_line(useful)
