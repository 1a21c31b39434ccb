"""Requests to logical clients: sent, sent again where too few answer, every reply checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from clients.messages import CLIENT_ONLY, Job
from fedpgp.config import RuntimeSection
from strategies.exchange import NO_REPLY, Exchange
from strategies.failures import Redraw, lost_round, tell
from strategies.grid import CohortGrid
from strategies.invalid_reply import InvalidReply, checked
from strategies.observer import Observer
from strategies.rollback import NoUsableReply, may_be_spoiled
from strategies.run_state import RunState
from strategies.watch import Watch

TRIES = 2
"""Times clients are asked before the run stops."""

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """What clients are asked.

    Attributes:
        server_round: in which round.
        clients: who can be asked.
        configure: makes the messages; a strategy's finds these clients in the grid.
        check: raises :class:`InvalidReply` for a client's reply that cannot be used.
        need: the fewest usable replies.
        ask: what a query or an evaluation wants beside the usual (:class:`clients.messages.Job`).
        screen: usable replies -> why some are not, beside the others.
        left_out: called with why clients gave no usable reply; returns whether some of them are not
            to be drawn any more.
        of_code: it fails where everybody fails by exceptions in the code of a method, however few
            answers are needed.
    """

    server_round: int
    clients: Sequence[int]
    configure: Callable[[], list[Message]]
    check: Callable[[int, RecordDict], None]
    need: int
    ask: str = ""
    screen: Callable[[Mapping[int, Message]], dict[int, str]] = lambda good: {}
    left_out: Callable[[Mapping[int, str]], bool] = lambda dropped: False
    of_code: bool = False


@dataclass(frozen=True)
class SummedUpdates:
    """The updates of a round as a secure sum.

    Attributes:
        tensors: name -> sum of the clients' changes, each times its weight, float64.
        weight: sum of the weights.
    """

    tensors: Mapping[str, np.ndarray]
    weight: float


@dataclass
class Replies:
    """What came of a request.

    Attributes:
        exchange: what it cost.
        asked: number of clients that were asked.
        good: client -> usable reply.
        dropped: client -> why it is left out.
        silent: of those, the ones that did not answer at all.
        exceptions: the reasons that are exceptions in the code of a method.
        summed: the updates of the good ones, where the server sees their sum alone.
    """

    exchange: Exchange
    asked: int = 0
    good: dict[int, Message] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    exceptions: set[str] = field(default_factory=set)
    summed: SummedUpdates | None = None


class Requester:
    """Sends requests to clients.

    Args:
        grid: of the logical clients.
        job: what every message carries.
        runtime: of the configuration.
        observer: who is told.
        download_for: (client, server state) -> tensors that this client alone is sent.
    """

    def __init__(
        self,
        grid: CohortGrid,
        job: Job,
        runtime: RuntimeSection,
        observer: Observer,
        download_for: Callable[[int, Tensors], Tensors],
    ):
        self._grid, self._job, self._observer = grid, job, observer
        self._download_for = download_for
        self._timeout, self._min_clients = runtime.round_timeout, runtime.min_clients
        self._debug = runtime.debug
        self._watch = Watch(Path(job.private) if job.private else None, observer.progress)

    def ask(self, request: Request, state: RunState) -> Replies:
        """Ask clients; when fewer than ``need`` give a usable reply, ask the others once more.

        Args:
            request: what they are asked.
            state: of the run, before the request.

        Raises:
            FedPGPError: fewer than ``need`` again.
            Redraw: fewer than ``need``, and some are not to be drawn any more.
            NoUsableReply: half of those asked answered or more, and no reply can be used.
        """
        what, grid = f"round {request.server_round}", self._grid
        grid.available, grid.exchange = list(request.clients), Exchange()
        grid.committed = {client: int(state.committed[client]) for client in request.clients}
        grid.job = replace(
            self._job, server_round=request.server_round, ask=request.ask, debug=self._debug
        )
        messages = {
            message.metadata.dst_node_id: self._with_client_only(message, state.server_state)
            for message in request.configure()
        }
        replies = Replies(grid.exchange, len(messages))
        told = 0  # accounts whose exceptions have been reported
        for attempt in range(1, TRIES + 1):
            arrived = self._send(request, messages, sorted(set(messages) - set(replies.good)))
            accounts = grid.exchange.accounts
            replies.exceptions |= tell(what, accounts[told:], self._observer, debug=self._debug)
            told = len(accounts)
            _sort(arrived, request, replies)
            redraw = request.left_out(replies.dropped)
            if len(replies.good) >= request.need:
                break
            if redraw:
                raise Redraw(f"{what}: {self._few(request, replies)}; drawing clients anew")
            if attempt < TRIES:
                again = "asking the others again" if replies.good else "asking all again"
                self._observer.warn(f"{what}: {self._few(request, replies)}; {again}")
        if grid.registry is not None:
            for client in replies.dropped:
                grid.registry.recheck(client)
        broken = request.of_code and replies.dropped and not replies.good
        if len(replies.good) < request.need or (
            broken and replies.exceptions.issuperset(replies.dropped.values())
        ):
            raise self._lost(request, replies)
        return replies

    def _send(
        self, request: Request, messages: Mapping[int, Message], clients: Sequence[int]
    ) -> list[Message]:
        """Send these clients' messages, and wait for the replies."""
        kind = {client: messages[client].metadata.message_type for client in clients}
        fresh = [Message(messages[c].content, dst_node_id=c, message_type=kind[c]) for c in clients]
        kinds = set(kind.values())
        with self._watch.during(request.server_round, *kinds, request.ask) as self._grid.progress:
            return self._grid.send_and_receive(fresh, timeout=self._timeout)

    def _with_client_only(self, message: Message, server_state: Tensors) -> Message:
        """Add the tensors that the method sends to this message's client alone."""
        client = message.metadata.dst_node_id
        tensors = self._download_for(client, server_state) if server_state else {}
        if tensors:
            record = ArrayRecord({name: Array(array) for name, array in tensors.items()})
            message.content = RecordDict({**message.content, CLIENT_ONLY: record})
        return message

    def _lost(self, request: Request, replies: Replies) -> Exception:
        """Return the error of a request that too few clients answered."""
        failed = replies.dropped
        failure = lost_round(
            f"round {request.server_round}: {self._few(request, replies)}",
            failed,
            replies.exceptions,
        )
        suspect = not replies.good and may_be_spoiled(failed, replies.silent, replies.exceptions)
        return NoUsableReply(failure) if suspect else failure

    def _few(self, request: Request, replies: Replies) -> str:
        """Say how many clients answered, and why the first of the others did not."""
        text = f"{len(replies.good)} of {replies.asked} clients gave a usable reply"
        text += f", {request.need} are needed" if request.need else ""
        if request.need == self._min_clients:
            text += " (runtime.min_clients)"
        if replies.dropped:
            client = min(replies.dropped)
            text += f". Client {client}: {replies.dropped[client]}"
        return text


def _sort(arrived: Sequence[Message], request: Request, replies: Replies) -> None:
    """Check what arrived one by one, then beside each other, and sort it into the replies."""
    for reply in arrived:
        client = reply.metadata.src_node_id
        replies.silent.discard(client)
        try:
            if reply.has_error():
                replies.silent |= {client} if reply.error.code == NO_REPLY else set()
                raise InvalidReply(reply.error.reason.removeprefix(f"client {client}: "))
            checked(partial(request.check, client, reply.content))
            replies.good[client] = reply
            replies.dropped.pop(client, None)
        except InvalidReply as reason:
            replies.dropped[client] = str(reason)
    for client, reason in request.screen(replies.good).items():
        replies.dropped[client] = reason
        del replies.good[client]
