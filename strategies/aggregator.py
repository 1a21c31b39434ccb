"""From the replies of a round to the next global tensors: the strategy's average, then what the
method makes of it."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedpgp.errors import FedPGPError
from strategies.flower_strategies import strategy_state
from strategies.run_state import RunState


class Aggregator:
    """Aggregates the replies of a round.

    Args:
        federation: the server's :class:`fedpgp.federation.Federation`; only its weighting and its
            method are used.
        name: of the strategy, for messages.
        num_rounds: of the run.
        reference: the global tensors: their names, order and types.
    """

    def __init__(self, federation, name: str, num_rounds: int, reference: Mapping[str, np.ndarray]):
        self._federation, self._name, self._num_rounds = federation, name, num_rounds
        self._reference = reference

    def aggregate(
        self, strategy: Strategy, state: RunState, server_round: int, good: Mapping[int, Message]
    ) -> None:
        """Put the next global tensors, and the method's server state, into the run's state.

        Args:
            strategy: averages the replies.
            state: of the run; changed in place.
            server_round: the round.
            good: client -> its reply.

        Raises:
            FedPGPError: the strategy could not aggregate, or a tensor is NaN or Inf.
        """
        replies = {client: good[client].content for client in sorted(good)}
        if self._federation.server.equal_weights:
            for content in replies.values():
                content["metrics"]["num-examples"] = 1
        # Before the strategy has them: some of Flower's take the arrays out of the replies.
        updates = {
            c: {name: a.numpy() for name, a in r["arrays"].items()} for c, r in replies.items()
        }
        aggregated, _ = strategy.aggregate_train(
            server_round, [good[client] for client in sorted(good)]
        )
        if aggregated is None:
            raise FedPGPError(
                f"round {server_round}: strategy={self._name} could not aggregate the replies"
            )
        averaged = {
            name: aggregated[name].numpy().astype(tensor.dtype)
            for name, tensor in self._reference.items()
        }
        _check_finite(server_round, {**averaged, **strategy_state(strategy)[0]})
        shared, state.server_state = self._federation.server.update(
            averaged,
            server_round=server_round,
            num_rounds=self._num_rounds,
            global_params=state.shared,
            updates=updates,
            weights={
                client: content["metrics"]["num-examples"] for client, content in replies.items()
            },
            server_state=state.server_state,
        )
        _check_finite(server_round, shared)
        state.shared = {name: shared[name] for name in self._reference}


def _check_finite(server_round: int, shared: Mapping[str, np.ndarray]) -> None:
    for name, tensor in shared.items():
        if not np.isfinite(tensor).all():
            raise FedPGPError(
                f"round {server_round}: the aggregated tensor {name} is NaN or Inf; try a "
                "smaller lr, another strategy or a bound on updates (strategy.max_update_norm)"
            )
