"""The server: a ServerApp whose round loop is ours, around a Flower strategy.

Flower's own loop samples from global random state, waits without end and returns only after the
last round. This one draws the clients of a round from (seed, round), checks every reply, retries a
round that lost too many clients, and saves after each round, so that a run can be killed at any
moment and resumes with the same numbers.
"""

import copy
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from clients.messages import Job
from clients.private_state import supersede_workers
from fedpgp.attacks import attackers_of
from fedpgp.config import Config
from fedpgp.data_record import data_record
from fedpgp.evaluation import is_evaluated
from fedpgp.plain_text import called
from fedpgp.updates import StopTraining
from fedpgp.updates.pipeline import UpdatePipeline
from strategies.aggregator import Aggregator
from strategies.connected_clients import ConnectedClients
from strategies.costs import Costs
from strategies.failures import Redraw
from strategies.flower_strategies import clients_needed, seed_libraries
from strategies.observer import Observer
from strategies.records import evaluation_record, evaluation_rows, extras, train_record
from strategies.rollback import NoUsableReply, Rollback
from strategies.run_state import RunState, restore_run, save_run
from strategies.sampling import check_enough, choose_clients
from strategies.screening import UpdateBounds
from strategies.secure_sum import updates_by
from strategies.strategy_requests import StrategyRequests


class Server:
    """One run.

    Args:
        config: the resolved configuration.
        federation: the server's :class:`fedpgp.federation.Federation`; only its initial
            tensors and method are used.
        strategy: a Flower strategy that takes all clients it is offered.
        folder: of the run; checkpoints go to ``checkpoint/``, private states to ``private/``.
        job: run id, attempt, configuration; what every message carries.
        observer: who is told.
        stop: set when the person wants to stop.
        checkpoint: (tensors, info) to resume from; None starts anew.
        initial: shared tensors to start anew from; None are the method's own.
        configuration: what the nodes of a deployment are sent (JSON text); None in a simulation.
        nodes: number of nodes, in a simulation.
        began: when the run began (``time.perf_counter``); overhead is counted from there.
    """

    def __init__(
        self,
        config: Mapping,
        federation,
        strategy: Strategy,
        folder: Path,
        job: Job,
        observer: Observer,
        *,
        stop: threading.Event | None = None,
        checkpoint: tuple[dict[str, np.ndarray], dict] | None = None,
        initial: Mapping[str, np.ndarray] | None = None,
        configuration: str | None = None,
        nodes: int = 1,
        began: float | None = None,
    ):
        self.config = typed = Config.of(config)
        self._given, self.federation, self.strategy = config, federation, strategy
        self.folder, self.job, self.observer = folder, job, observer
        self.stop, self.configuration, self.nodes = stop or threading.Event(), configuration, nodes
        self._saved = checkpoint[1] if checkpoint else {}
        self.rounds = typed.rounds if federation.method.learns else 0
        self.failure: BaseException | None = None
        self._unused = (copy.deepcopy(strategy), federation, typed.left)
        if checkpoint:
            self.state, self.strategy = restore_run(*checkpoint, *self._unused)
        else:
            self.state = RunState.fresh(federation, initial)
        self.costs = Costs(self.state.seconds["total"], began)
        self._split = federation.federated_split
        self._data = data_record(self._split)
        self._reference = dict(self.state.shared)  # names, shapes and types
        method, clients = federation.method, (federation.num_clients, self._split.trainers)
        self.steps = UpdatePipeline(config, method, *clients)
        self.state.step_state = self.steps.prepared(self.state.step_state)
        self._aggregator = Aggregator(federation, self.steps, typed, self._reference, observer.warn)
        counted = not self._split.private_data or self._aggregator.equal_weights
        summed = self.steps.sums  # then updates are not compared with each other
        about = (method.delta_params, counted or summed, summed)
        self._bounds = UpdateBounds(typed.strategy, *about, observer.warn, method.begun_with)
        self._rollback = Rollback(folder / "checkpoint", observer.warn, not self.steps.combiner)
        self.attackers = attackers_of(config, self._split, method.delta_params)

    def app(self) -> ServerApp:
        """Return the Flower ServerApp of this run."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self.try_run(grid)

        return app

    def try_run(self, grid: Grid) -> None:
        """Run, and never raise (Flower would go on waiting): what went wrong is in ``failure``."""
        try:
            self.run(grid)
        except BaseException as failure:  # also Interrupted
            self.failure = failure.failure if isinstance(failure, NoUsableReply) else failure
            # Work still under way is of no use any more.
            supersede_workers(self.folder / "private", self.job, self.observer.warn)

    def run(self, inner: Grid) -> None:
        """Run all rounds, from where the state is to the last.

        Raises:
            FedPGPError: too few usable replies, twice, or something that cannot be written.
            Interrupted: the person asked to stop. The state of the last finished round is saved.
        """
        self.clients = clients = ConnectedClients(
            inner,
            self.federation,
            self.job,
            self.config,
            self.observer,
            stop=self.stop,
            configuration=self.configuration,
            nodes=self.nodes,
            saved=self._saved,
        )
        about = (self._reference, self._bounds, self.steps, self.attackers, clients.train_images)
        self._ask_updates = updates_by(clients.ask_updates, self.steps, self._aggregator)
        self._requests = StrategyRequests(clients.grid, self.config, self._split, *about)
        self.costs.add(self.state, clients.set_up(self.state), "encode")
        if self.rounds:
            check_enough(self.config, clients.table, self._needed())
        clients.warn_without_figures()
        if not self._saved:
            self.observer.stage("evaluating before training")
        if not self._saved or self.state.unevaluated:
            self._evaluate(self.state.server_round)
            self._save()
        while (server_round := self.state.server_round + 1) <= self.rounds:
            try:
                self._round(server_round)
            except StopTraining as reason:
                self._end_early(str(reason))
                break
            except Redraw as spent:
                self.observer.warn(str(spent))
            except NoUsableReply as lost:
                done, states = self.state.server_round, self.state.step_state
                tensors, info = self._rollback.checkpoint(server_round, done, lost)
                self.state, self.strategy = restore_run(tensors, info, *self._unused)
                self.state.step_state = self.steps.after_rollback(states, self.state.step_state)
                self.observer.roll_back(info["observer"], info["round"])
        samples, exchange = clients.ask_samples(self.state)
        self.costs.add(self.state, exchange, None)
        self.observer.samples(samples)
        self.costs.clock(self.state)

    def _round(self, server_round: int) -> None:
        state, began = self.state, time.perf_counter()
        seed_libraries(self.config.seed, server_round)
        state.step_state = self.steps.before_round(server_round, state.step_state)

        # Step 1: draw the clients that take part.
        about = (self.config, self.clients.current_table(), server_round, self._needed())
        clients, gone, need = choose_clients(*about, self.steps, state.step_state)

        # Step 2: send them the global tensors; each trains and answers with its update.
        training = self._requests.training(self.strategy, state, server_round, clients, need)
        replies = self._ask_updates(training, state)

        # Step 3: weigh the updates by their images.
        metrics = {c: replies.good[c].content["metrics"] for c in sorted(replies.good)}
        images = {client: int(said["num-examples"]) for client, said in metrics.items()}
        caps = self._bounds.cap(metrics, images)
        weights = {client: said["num-examples"] for client, said in metrics.items()}

        # Step 4: aggregate them to the next global tensors.
        told = self._aggregator.aggregate(self.strategy, state, server_round, replies)
        epochs = {client: said["epochs"] for client, said in metrics.items()}
        state.finish_round(server_round, replies.exchange.kept & set(replies.good), images, epochs)
        self.costs.add(state, replies.exchange, "train")
        dropped, traffic = {**gone, **replies.dropped}, replies.exchange.traffic
        seconds, filtered = time.perf_counter() - began, self._aggregator.filtered
        record = train_record(server_round, metrics, weights, dropped, filtered, seconds, traffic)
        self.observer.trained(record | extras(images, caps, filtered, told))

        # Step 5: evaluate, and save.
        if self._evaluated_after(server_round):
            state.unevaluated = self.steps.sums
            if state.unevaluated:  # on disk before anybody is sent it
                self._save()
            self._evaluate(server_round)
        self._save()

    def _end_early(self, reason: str) -> None:
        """Evaluate the last model, unless that is done, and save, as after the last round."""
        done = self.state.server_round
        self.observer.warn(f"the training ends after round {done} of {self.rounds}: {reason}")
        if done and not (self.state.stopped or self._evaluated_after(done)):
            self._evaluate(done)
        self.state.stopped = reason
        self._save()

    def _evaluated_after(self, server_round: int) -> bool:
        about = self.rounds, self.config.evaluate_every, self.config.protocol["selection"]
        return is_evaluated(server_round, *about) or self._split.ends_task(server_round)

    def _evaluate(self, server_round: int) -> None:
        """Ask the clients, or those drawn, for the figures of their models."""
        state, began = self.state, time.perf_counter()
        evaluation = self._requests.evaluation(self.strategy, state, server_round)
        replies = self.clients.ask(evaluation, state)
        figures = {client: r.content["metrics"] for client, r in replies.good.items()}
        if evaluation.ask:
            state.keep_zero_shot(figures, evaluation.clients, server_round)
        state.unevaluated, rows = False, evaluation_rows(self.clients.table, figures, state)
        self.costs.add(state, replies.exchange, "evaluate")
        for client, reason in sorted(replies.dropped.items()):
            who = called(self.clients.table[client])
            self.observer.warn(f"round {server_round}: {who} is not in the evaluation: {reason}")
        about = (time.perf_counter() - began, replies.exchange.traffic, self.attackers)
        record = evaluation_record(evaluation, rows, self.clients.members, *about)
        self.observer.evaluated(record, rows)

    def _needed(self) -> int:
        """The fewest clients a round's result can be made of."""
        return clients_needed(self.strategy) if self.state.shared else 1

    def _save(self) -> None:
        self.costs.clock(self.state)
        clip, mark = self.federation.method.task.clip, self.observer.mark(self.state.unevaluated)
        about = {"run": self.job.run, "config": self._given, "model_sha256": clip.fingerprint}
        about |= {"data": self._data, "observer": mark, **self.clients.saved()}
        save_run(self.folder / "checkpoint", self.state, self.strategy, about)
