"""From the replies of a round to the next global tensors: the strategy's average, then what the
method makes of it."""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.updates.pipeline import UpdatePipeline
from strategies.aggregation.base import FILTERED
from strategies.flower_strategies import beyond_theorem, strategy_state
from strategies.requests import Replies
from strategies.run_state import RunState
from strategies.sampling import participants


class Aggregator:
    """Aggregates the replies of a round.

    Args:
        federation: the server's :class:`fedpgp.federation.Federation`; only its weighting and its
            method are used.
        steps: what the aggregate goes through before the method has it.
        config: of the run.
        reference: the global tensors: their names, order and types.
        warn: told of a round with fewer clients than the strategy's theorem needs.

    Attributes:
        filtered: clients that the strategy left out of the last round.
    """

    def __init__(
        self,
        federation,
        steps: UpdatePipeline,
        config: Config,
        reference: Mapping[str, np.ndarray],
        warn: Callable[[str], None],
    ):
        self._federation, self._steps, self.reference = federation, steps, reference
        self._name, self._num_rounds = config.strategy.name, config.rounds
        self.filtered: list[int] = []
        self._warn, self._fewest = warn, participants(config, federation.federated_split.trainers)

    @property
    def equal_weights(self) -> bool:
        """Whether clients are averaged alike, not by their number of images."""
        return self._federation.server.equal_weights or self._steps.equal_weights

    def aggregate(
        self,
        strategy: Strategy,
        state: RunState,
        server_round: int,
        answered: Replies,
    ) -> dict[str, dict[str, float]]:
        """Put the next global tensors, and the states of the method's server part and of the update
        steps, into the run's state; return what the steps say of the round.

        Args:
            strategy: averages the replies.
            state: of the run; changed in place.
            server_round: the round.
            answered: what came of the clients' training.

        Raises:
            FedPGPError: the strategy could not aggregate, or a tensor is NaN or Inf.
        """
        good, summed = answered.good, answered.summed
        replies = {client: good[client].content for client in sorted(good)}
        if self.equal_weights and state.shared:
            for content in replies.values():
                content["metrics"]["num-examples"] = 1
        updates = None
        if self._federation.method.needs_each_update:
            # Before the strategy has them: some of Flower's take the arrays out of the replies.
            updates = {
                c: {name: a.numpy() for name, a in r["arrays"].items()} for c, r in replies.items()
            }
        metrics = {client: dict(content["metrics"]) for client, content in replies.items()}
        weights = {client: said["num-examples"] for client, said in metrics.items()}
        about = {"server_round": server_round, "weights": weights, "metrics": metrics}
        about["lr"] = self._federation.training.learning_rate(server_round)
        if not state.shared:  # steps may count what clients did
            _, told, state.step_state = self._steps.on_server({}, {}, state.step_state, **about)
            return told
        messages = [good[client] for client in sorted(good)]
        self._check_enough(strategy, server_round, len(messages))
        combined, step_state = {}, state.step_state
        if summed is not None:
            total = (summed.tensors, summed.weight, state.shared, step_state)
            reply, combined, step_state = self._steps.combine_sum(*total, **about)
            messages = [_one_reply(reply)]
        elif self._steps.combiner is not None:
            sent = {
                c: {name: a.numpy() for name, a in r["arrays"].items()} for c, r in replies.items()
            }
            reply, combined, step_state = self._steps.combine(
                sent, state.shared, step_state, **about
            )
            messages = [_one_reply(reply)]
        try:
            aggregated, said = strategy.aggregate_train(server_round, messages)
        except ZeroDivisionError as error:  # Flower's wrappers divide by an update's norm
            raise FedPGPError(
                f"round {server_round}: strategy.wrap cannot clip the update of a client that did "
                "not move"
            ) from error
        if aggregated is None:
            raise FedPGPError(
                f"round {server_round}: strategy={self._name} could not aggregate the replies"
            )
        self.filtered = list((said or {}).get(FILTERED, []))
        averaged = {
            name: aggregated[name].numpy().astype(tensor.dtype)
            for name, tensor in self.reference.items()
        }
        _check_finite(server_round, {**averaged, **strategy_state(strategy)[0]})
        averaged, told, step_state = self._steps.on_server(
            averaged, state.shared, step_state, **about
        )
        shared, server_state = self._federation.server.update(
            averaged,
            server_round=server_round,
            num_rounds=self._num_rounds,
            global_params=state.shared,
            weights=weights,
            server_state=state.server_state,
            updates=updates,
        )
        _check_finite(server_round, shared)
        state.shared = {name: shared[name] for name in self.reference}
        state.server_state, state.step_state = server_state, step_state
        return {**combined, **told}

    def _check_enough(self, strategy: Strategy, server_round: int, clients: int) -> None:
        """Warn of a round with fewer clients than any before, where a theorem needs more."""
        if clients < self._fewest and (said := beyond_theorem(strategy, clients)):
            self._warn(f"round {server_round}: {said}")
        self._fewest = min(self._fewest, clients)


def _one_reply(arrays: Mapping[str, np.ndarray]) -> Message:
    """The reply that stands for all, as a strategy reads it."""
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)


def _check_finite(server_round: int, shared: Mapping[str, np.ndarray]) -> None:
    for name, tensor in shared.items():
        if not np.isfinite(tensor).all():
            raise FedPGPError(
                f"round {server_round}: the aggregated tensor {name} is NaN or Inf; try a "
                "smaller lr, another strategy or a bound on updates (strategy.max_update_norm)"
            )
