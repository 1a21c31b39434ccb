"""The requests that a Flower strategy writes: to train, and to evaluate."""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from clients.disclosure import updates_only
from fedpgp.arrays import Arrays
from fedpgp.attacks import Attackers
from fedpgp.config import Config
from fedpgp.evaluation.figures import BESIDE
from fedpgp.updates.configured import metrics_of
from fedpgp.updates.pipeline import UpdatePipeline
from strategies.collusion import collude
from strategies.flower_strategies import clients_needed
from strategies.reply_checks import check_figures, check_update
from strategies.requests import Request
from strategies.run_state import RunState
from strategies.sampling import draw_evaluated
from strategies.screening import UpdateBounds


class StrategyRequests:
    """Makes the requests of a run.

    Args:
        grid: from which the strategy takes the clients.
        config: of the run.
        split: the server's :class:`fedpgp.protocols.splits.FederatedSplit`.
        reference: the global tensors: names, shapes and types of an update's, where the server
            sees one.
        bounds: of updates.
        steps: that updates go through.
        attackers: those of a simulation; None without an attack.
        train_images: (client, round) -> how many images it trains on; None where it alone knows.

    Raises:
        FedPGPError: settings of the evaluation that do not go together.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        split,
        reference: Mapping[str, np.ndarray],
        bounds: UpdateBounds,
        steps: UpdatePipeline,
        attackers: Attackers | None,
        train_images: Callable[[int, int], int | None],
    ):
        self._grid, self._config, self._split = grid, config, split
        self._bounds, self._steps = bounds, steps
        self._reference = {**reference, **steps.extra_tensors}
        if config.privacy.secure_sum:
            self._reference = {}
        self._train_images = train_images
        self._attackers = attackers
        self._told = not updates_only(config.privacy, deployed=config.runtime.name == "flower")

    def training(
        self, strategy: Strategy, state: RunState, server_round: int, clients: list[int], need: int
    ) -> Request:
        """Return the request to these clients to train; their updates are checked one by one, then
        beside each other."""
        arrays, broadcast = state.arrays(), self._steps.broadcast(state.step_state)
        epochs = self._config.local_epochs
        metrics = metrics_of(self._steps.steps, updates_only=not self._told)

        def configure() -> list[Message]:
            facts = self._steps.sum_facts(state.step_state, len(clients))
            config = ConfigRecord({**broadcast, **facts})
            if not clients:  # nobody was drawn: one is written, from whose tensors it goes on
                self._grid.available = [0]
            messages = list(strategy.configure_train(server_round, arrays, config, self._grid))
            return messages if clients else []

        def check(client: int, content: RecordDict) -> None:
            images = self._train_images(client, server_round)
            check_update(content, images, self._reference, epochs, metrics, told=self._told)

        def steps(client: int, update: Arrays) -> Arrays:
            images = self._train_images(client, server_round)
            about = (client, update, state.shared, images)
            facts = {"server_round": server_round, "broadcast": broadcast}
            return self._steps.on_client(*about, **facts)[0]

        def screen(good: Mapping[int, Message]) -> dict[int, str]:
            collude(self._attackers, good, state.shared, server_round, steps)
            return self._bounds.screen(good, state.shared, clients_needed(strategy))

        def left_out(reasons: Mapping[int, str]) -> bool:
            return self._steps.left_out(reasons, server_round, state.step_state)

        about = {"screen": screen, "left_out": left_out, "of_code": True}
        return Request(server_round, clients, configure, check, need, **about)

    def evaluation(self, strategy: Strategy, state: RunState, server_round: int) -> Request:
        """Return the request to all clients, or those drawn, for the figures of their models; of
        zero-shot CLIP too, where one of them was not asked for all of these yet."""
        attackers = () if self._attackers is None else self._attackers.clients
        about = (server_round, attackers, state.zero_shot_asked)
        clients = draw_evaluated(self._config, self._split, *about)
        arrays = state.arrays()
        eval_sets = {c: self._split.clients[c].eval_sets_at(server_round) for c in clients}
        beside = {*BESIDE, *(("base", "novel") if self._split.private_data else ())}

        def configure() -> list[Message]:
            configured = strategy.configure_evaluate
            return list(configured(server_round, arrays, ConfigRecord(), self._grid))

        def check(client: int, content: RecordDict) -> None:
            check_figures(content, {*eval_sets[client]} | beside, told=self._told)

        def lacks_zero_shot(client: int) -> bool:
            asked = state.zero_shot_asked[client]
            return asked < 0 or any(asked < e.since for e in eval_sets[client].values())

        need = min(self._config.runtime.min_clients, len(clients)) if self._told else 0
        ask = "zero_shot" if any(map(lacks_zero_shot, clients)) else ""
        return Request(server_round, clients, configure, check, need, ask)
