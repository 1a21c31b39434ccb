"""The requests that a Flower strategy writes: to train, and to evaluate."""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpgp.updates.pipeline import UpdatePipeline
from strategies.flower_strategies import clients_needed
from strategies.reply_checks import check_figures, check_update
from strategies.requests import Request
from strategies.run_state import RunState
from strategies.screening import UpdateBounds


class StrategyRequests:
    """Makes the requests of a run.

    Args:
        grid: from which the strategy takes the clients.
        config: of the run.
        split: the server's :class:`fedpgp.protocols.base.FederatedSplit`.
        reference: the global tensors: names, shapes and types of an update's.
        bounds: of updates.
        steps: that updates go through.
        train_images: client -> how many training images it has.
    """

    def __init__(
        self,
        grid: Grid,
        config: Mapping,
        split,
        reference: Mapping[str, np.ndarray],
        bounds: UpdateBounds,
        steps: UpdatePipeline,
        train_images: Callable[[int], int],
    ):
        self._grid, self._config, self._split = grid, config, split
        self._reference, self._bounds, self._steps = reference, bounds, steps
        self._train_images = train_images

    def training(
        self, strategy: Strategy, state: RunState, server_round: int, clients: list[int], need: int
    ) -> Request:
        """Return the request to these clients to train; their updates are checked one by one, then
        beside each other."""
        arrays, broadcast = state.arrays(), self._steps.broadcast(state.step_state)
        epochs, metrics = self._config["local_epochs"], self._steps.client_metrics

        def configure() -> list[Message]:
            config = ConfigRecord(broadcast)
            return list(strategy.configure_train(server_round, arrays, config, self._grid))

        def check(client: int, content: RecordDict) -> None:
            check_update(content, self._train_images(client), self._reference, epochs, metrics)

        def screen(good: Mapping[int, Message]) -> dict[int, str]:
            return self._bounds.screen(good, state.shared, clients_needed(strategy))

        return Request(server_round, clients, configure, check, need, screen=screen)

    def evaluation(self, strategy: Strategy, state: RunState, server_round: int) -> Request:
        """Return the request to all clients for the figures of their models; the first one asks for
        those of zero-shot CLIP too."""
        arrays, clients = state.arrays(), list(range(len(state.committed)))

        def configure() -> list[Message]:
            configured = strategy.configure_evaluate
            return list(configured(server_round, arrays, ConfigRecord(), self._grid))

        def check(client: int, content: RecordDict) -> None:
            check_figures(content, self._figures_of(client))

        need = min(self._config["runtime"]["min_clients"], len(clients))
        ask = "" if state.zero_shot else "zero_shot"
        return Request(server_round, clients, configure, check, need, ask)

    def _figures_of(self, client: int) -> set[str]:
        """What a client is scored on."""
        own = {"base", "novel"} if self._split.private_data else set()
        return {*self._split.clients[client].eval_sets, "ece"} | own
