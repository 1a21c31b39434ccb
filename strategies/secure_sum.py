"""The server's part in the secure sum of a round: the request to train, whose replies have keys in
the place of updates, and three more, of which the last gives the sum (:mod:`fedpgp.secure_sum`).

A client that is lost on the way is left out, by name, as in any round. When too few are left, or
one of them sends what no honest client sends, the round ends with an error: its sum is never
unmasked, and the run goes on from the last round that was saved.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from clients.sum_records import (
    MASK,
    SHARE,
    UNMASK,
    mask_question,
    read_accusation,
    read_keys,
    read_masked,
    read_shares,
    read_unmasking,
    share_question,
    unmask_question,
)
from fedpgp.arrays import Arrays
from fedpgp.errors import FedPGPError
from fedpgp.prefixes import strip_prefix
from fedpgp.secure_sum import Keys, Layout, Quantiser, SumFailed, Tally, fewest_survivors
from fedpgp.updates.pipeline import SECURE_SUM, UpdatePipeline
from fedpgp.updates.sum_check import LEAST_CLIENTS
from strategies.aggregator import Aggregator
from strategies.invalid_reply import InvalidReply
from strategies.requests import Replies, Request, SummedUpdates
from strategies.run_state import RunState
from strategies.used_keys import UsedKeys

Ask = Callable[[Request, RunState], Replies]


@dataclass
class _Round:
    """A round under way: the replies to training, the sum, who lied."""

    replies: Replies
    state: RunState
    tally: Tally
    need: int
    server_round: int
    lies: list[SumFailed] = field(default_factory=list)


def updates_by(ask: Ask, steps: UpdatePipeline, aggregator: Aggregator) -> Ask:
    """Return what asks for the updates of a round: each, or their sum alone.

    Args:
        ask, steps: as in :class:`SecureSums`.
        aggregator: of the run.
    """
    if not steps.settings.secure_sum:
        return ask
    about = (aggregator.reference, aggregator.equal_weights)
    return SecureSums(ask, steps, *about).ask


class SecureSums:
    """Asks for the updates of a round as one sum.

    Args:
        ask: sends a request.
        steps: of the run.
        reference: the global tensors: names and shapes of an update's.
        equal_weights: whether clients weigh the same.
    """

    def __init__(
        self,
        ask: Ask,
        steps: UpdatePipeline,
        reference: Arrays,
        equal_weights: bool,
    ):
        settings, self._ask, self._steps = steps.settings, ask, steps
        self._threshold = settings.secure_sum_threshold
        shapes = steps.sum_shapes(reference)
        self._layout = Layout(shapes, None if equal_weights else settings.secure_sum_images)
        self._used = UsedKeys()

    def ask(self, training: Request, state: RunState) -> Replies:
        """Ask clients to train, and for the sum of their updates.

        Args:
            training: the request.
            state: of the run, before the round.

        Returns:
            The replies of those whose updates are in the sum, and the sum; none where nobody was
            asked.

        Raises:
            FedPGPError: too few are left, or one lied; the round has no result.
        """
        keys: dict[int, Keys] = {}

        def check(client: int, content: RecordDict) -> None:
            keys[client] = read_keys(content["answer"])
            training.check(client, content)

        facts = self._steps.sum_facts(state.step_state, len(training.clients))
        quantiser = Quantiser.of(strip_prefix(f"{SECURE_SUM}.", facts))
        least = 0 if quantiser.noise > 0 else LEAST_CLIENTS
        need = max(training.need, least)
        replies = self._ask(replace(training, check=check, need=need), state)
        if not replies.good:
            return replies
        server_round = training.server_round
        try:
            state.sum_keys = self._used.add(
                {client: keys[client] for client in replies.good}, server_round, state.sum_keys
            )
            tally = Tally(
                {client: keys[client] for client in replies.good},
                self._threshold,
                self._layout.size,
            )
            fewest = fewest_survivors(len(replies.good), self._threshold)
            under_way = _Round(replies, state, tally, max(least, fewest), server_round)
            total = self._sum(under_way)
        except SumFailed as reason:
            raise FedPGPError(
                f"round {server_round}: {reason}; its sum is not unmasked"
            ) from reason
        tensors, weight = self._layout.decoded(total, len(tally.survivors), quantiser)
        replies.good = {client: replies.good[client] for client in tally.survivors}
        replies.summed = SummedUpdates(tensors, weight)
        return replies

    def _sum(self, under_way: _Round) -> np.ndarray:
        tally = under_way.tally
        clients = len(under_way.replies.good)

        def shares(client: int, record: Mapping) -> None:
            tally.take_shares(client, read_shares(record, client, list(tally.peers(client))))

        def masked(client: int, record: Mapping) -> None:
            tally.take_masked(client, read_masked(record, self._layout.size))

        def unmasking(client: int, record: Mapping) -> None:
            tally.take_unmasking(client, read_unmasking(record, *tally.to_unmask(client)))

        first = sorted(under_way.replies.good)
        self._step(
            SHARE, under_way, first, lambda c: share_question(tally.peers(c), clients), shares
        )
        self._step(MASK, under_way, tally.shared, lambda c: mask_question(tally.inbox(c)), masked)
        survivors = tally.survivors
        questions = {client: unmask_question(*tally.to_unmask(client)) for client in survivors}
        self._step(UNMASK, under_way, survivors, questions.__getitem__, unmasking)
        return tally.total()

    def _step(
        self,
        name: str,
        under_way: _Round,
        clients: Sequence[int],
        question: Callable[[int], ConfigRecord],
        take: Callable[[int, Mapping], None],
    ) -> None:
        """Ask clients a question of their own, and take the replies.

        Raises:
            SumFailed: one lied.
            FedPGPError: too few reply.
        """

        def configure() -> list[Message]:
            return [
                Message(
                    RecordDict({"config": question(client)}),
                    dst_node_id=client,
                    message_type=MessageType.QUERY,
                )
                for client in clients
            ]

        def check(client: int, content: RecordDict) -> None:
            record = content["answer"]
            try:
                if accused := read_accusation(record):
                    who = ", ".join(map(str, accused))
                    raise SumFailed(
                        f"client {client} says that client {who} sent it shares that are none",
                        accused,
                    )
                take(client, record)
            except SumFailed as lie:
                under_way.lies.append(lie)
                raise InvalidReply(str(lie)) from lie

        request = Request(under_way.server_round, clients, configure, check, under_way.need, name)
        try:
            replies = self._ask(request, under_way.state)
        except FedPGPError as error:
            if under_way.lies:
                raise under_way.lies[0] from error
            if type(error) is not FedPGPError:
                raise
            raise FedPGPError(
                f"{error}. More than {self._threshold:.3g} of the round's clients have to stay to "
                "its end (privacy.secure_sum_threshold); its sum is not unmasked"
            ) from error
        if under_way.lies:
            raise under_way.lies[0]
        whole = under_way.replies
        whole.exchange.traffic += replies.exchange.traffic
        whole.exchange.accounts += [{**a, "clients": 0} for a in replies.exchange.accounts]
        if name != UNMASK:  # by then the update is in the sum
            whole.dropped |= replies.dropped
