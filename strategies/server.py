"""The server: a ServerApp whose round loop is ours, around a Flower strategy.

Flower's own loop samples from global random state, waits without end and returns only after the
last round. This one draws the clients of a round from (seed, round), checks every reply, retries a
round that lost too many clients, and saves after each round, so that a run can be killed at any
moment and resumes with the same numbers.
"""

import copy
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from clients.messages import CLIENT_ONLY, Job
from clients.node_config import compatibility
from clients.private_state import PrivateStore
from fedpgp.data_record import data_record
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import is_evaluated, summarize
from fedpgp.plain_text import called
from fedpgp.prefixes import strip_prefix
from fedpgp.seeding import generator
from strategies.checkpoint import save_checkpoint
from strategies.client_keys import KEY, ClientKeys
from strategies.failures import lost_round, tell
from strategies.flower_strategies import clients_needed, restore_strategy, strategy_state
from strategies.going_back import NoUsableAnswer, about_numbers, checkpoint_before
from strategies.grid import NO_ANSWER, CohortGrid, Exchange, Interrupted
from strategies.node_registry import NodeRegistry
from strategies.reply_checks import (
    ROW_BYTES,
    SAMPLES_BYTES,
    Unusable,
    check_figures,
    check_update,
    contained,
    json_answer,
    read_row,
    read_samples,
)
from strategies.run_state import RunState
from strategies.screening import capped, too_large
from strategies.watch import Watch

TRIES = 2
"""Times a round is asked before the run stops."""

RETURN_PATIENCE = 60.0
"""Seconds that a resumed run, or a round, waits for nodes that are on their way."""

Rows = list[dict]


class Observer(Protocol):
    """Who is told what happens: the run folder, the console, a logger."""

    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def traceback(self, text: str) -> None: ...
    def clients(self, table: Rows) -> None: ...
    def trained(self, record: dict) -> None: ...
    def evaluated(self, record: dict, rows: Rows) -> None: ...
    def samples(self, samples: Rows) -> None: ...
    def mark(self) -> dict:
        """What the observer needs to resume from here; saved in the checkpoint."""
        ...

    def go_back(self, mark: dict, server_round: int) -> None:
        """Forget what came after this mark, made after that round."""
        ...


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
        began: when the run began (``time.perf_counter``); what was before the server counts as
            overhead.
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
        self.config, self.federation, self.strategy = config, federation, strategy
        self.folder, self.job, self.observer = folder, job, observer
        self.stop, self.configuration = stop or threading.Event(), configuration
        self.registry: NodeRegistry | None = None
        self.nodes = nodes
        self.rounds = config["rounds"] if federation.method.learns else 0
        self.timeout = config["runtime"]["round_timeout"]
        self.table: Rows = []
        self.peak_memory: dict[str, float] = {}
        self.peak_gpu_memory: dict[str, float] = {}
        self.failure: BaseException | None = None
        self._restored = checkpoint is not None
        self._unused_strategy = copy.deepcopy(strategy)
        self._gone_back: set[int] = set()  # rounds from which the run has gone back
        self._client_keys: dict[int, str] = {}  # client -> its key, from the checkpoint
        self._capped: set[int] = set()  # clients whose weight was capped, and said so
        if checkpoint:
            tensors, info = checkpoint
            self.state, self.table = RunState.restored(tensors, info), info["table"]
            self._client_keys = {int(client): key for client, key in info.get("seats", {}).items()}
            restore_strategy(strategy, strip_prefix("rule/", tensors), info["rule"])
        else:
            self.state = RunState.fresh(federation, initial)
        self._reference = dict(self.state.shared)
        self._watch = Watch(Path(job.private) if job.private else None, observer.progress)
        self._began = time.perf_counter() if began is None else began
        self._before = self.state.seconds["total"]

    @cached_property
    def _data(self) -> dict:
        return data_record(self.federation.federated_split)

    def app(self) -> ServerApp:
        """The Flower ServerApp of this run."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self.try_run(grid)

        return app

    def try_run(self, grid: Grid) -> None:
        """Runs, and never raises: what went wrong is in ``failure``. Flower's runtimes would print
        a traceback and go on waiting.
        """
        try:
            self.run(grid)
        except BaseException as failure:  # also Interrupted
            self.failure = failure.failure if isinstance(failure, NoUsableAnswer) else failure
            self._supersede_workers()

    def run(self, inner: Grid) -> None:
        """All rounds, from where the state is to the last.

        Raises:
            FedPGPError: a round had too few usable replies, twice; or something could not be
                written.
            Interrupted: the person asked to stop. The state of the last finished round is saved.
        """
        clients = len(self.state.committed)
        if self.configuration is not None:
            job = replace(self.job, ask="handshake")
            table = (
                None
                if self.federation.federated_split.private_data
                else self.federation.client_table()
            )
            about = (
                clients,
                job,
                self.configuration,
                compatibility(self.federation),
                table,
                self.observer.warn,
            )
            self.registry = NodeRegistry(
                inner,
                *about,
                ClientKeys(self.config["runtime"].get("seats", KEY), self._client_keys),
            )
        poll = (
            0.1 if self.registry is None else 0.5
        )  # seconds between two looks; over a network they cost something
        grid = CohortGrid(
            inner,
            clients,
            self.job,
            registry=self.registry,
            nodes=self.nodes,
            stop=self.stop,
            poll=poll,
        )
        self.observer.stage("setting up the clients, encoding their images")
        self.table = (
            self._describe(grid) if self.registry is None else self._wait_for_clients(self.registry)
        )
        grid.work = [max(1, row["train_images"]) for row in self.table]
        self.observer.clients(self.table)
        self._check_enough()
        self._say_who_tells_nothing()
        if not self._restored:
            self._evaluate(grid, 0)
            self._save()
        while (server_round := self.state.server_round + 1) <= self.rounds:
            try:
                self._round(grid, server_round)
            except NoUsableAnswer as lost:
                self._go_back(server_round, lost)
        self.observer.samples(self._samples(grid))
        self._clock()

    # A round. -------------------------------------------------------------------------------------

    def _round(self, grid: CohortGrid, server_round: int) -> None:
        self._train(grid, server_round)
        if is_evaluated(
            server_round,
            self.rounds,
            self.config["evaluate_every"],
            self.config["protocol"]["selection"],
        ):
            self._evaluate(grid, server_round)
        self._save()

    def _go_back(self, server_round: int, lost: NoUsableAnswer) -> None:
        """Restores the checkpoint before the state of which no client made a usable
        answer: once from each round.

        Raises:
            NoUsableAnswer: the run went back from this round already, or there is no such
                checkpoint.
        """
        earlier = checkpoint_before(
            self.folder / "checkpoint", self.state.server_round, self.observer.warn
        )
        if earlier is None or server_round in self._gone_back:
            raise lost
        self._gone_back.add(server_round)
        tensors, info = earlier
        self.observer.warn(
            f"{lost}. The tensors after round {self.state.server_round} may be spoiled: going "
            f"back to those after round {info['round']}"
        )
        self.state, self.strategy = (
            RunState.restored(tensors, info),
            copy.deepcopy(self._unused_strategy),
        )
        restore_strategy(self.strategy, strip_prefix("rule/", tensors), info["rule"])
        self.observer.go_back(info["observer"], info["round"])

    def _train(self, grid: CohortGrid, server_round: int) -> None:
        began = time.perf_counter()
        self._seed_libraries(server_round)
        arrays = ArrayRecord({name: Array(tensor) for name, tensor in self.state.shared.items()})
        need = max(
            self.config["runtime"]["min_clients"],
            clients_needed(self.strategy) if self.state.shared else 1,
        )
        clients, gone = self._drop_out(server_round, self._sample(server_round), need)

        def configure() -> list[Message]:
            return list(self.strategy.configure_train(server_round, arrays, ConfigRecord(), grid))

        def check(client: int, content: RecordDict) -> None:
            check_update(
                content,
                self._row(client)["train_images"],
                self._reference,
                self.config["local_epochs"],
            )

        good, dropped, exchange = self._ask(
            grid, server_round, clients, configure, check, need, screen=self._screen
        )
        numbers = {client: good[client].content["metrics"] for client in sorted(good)}
        images = {client: int(metrics["num-examples"]) for client, metrics in numbers.items()}
        caps = self._cap(numbers, images)
        weights = np.array(
            [metrics["num-examples"] for metrics in numbers.values()], dtype=np.float64
        )
        if self.state.shared:
            self._aggregate(server_round, good)
        for client in exchange.kept & set(good):
            self.state.committed[client] = server_round
        self.state.server_round = server_round
        self.state.images += sum(
            int(images[client] * metrics["epochs"]) for client, metrics in numbers.items()
        )
        self._account(exchange, "train")
        record = {
            "kind": "train",
            "round": server_round,
            "loss": float(
                np.average([metrics["loss"] for metrics in numbers.values()], weights=weights)
            ),
            "clients": len(good),
            "seconds": time.perf_counter() - began,
            "bytes_up": exchange.traffic.up,
            "bytes_down": exchange.traffic.down,
            "dropped": [
                {"client": client, "reason": reason}
                for client, reason in sorted({**gone, **dropped}.items())
            ],
        }
        if caps:
            record["capped"] = [{"client": c, "images": images[c], "weight": caps[c]} for c in caps]
        self.observer.trained(record)

    def _screen(self, good: Mapping[int, Message]) -> dict[int, str]:
        """The clients whose update is out of proportion, and why; a strategy is left as many as it
        needs."""
        most = self.config["strategy"].get("max_update_norm")
        if most is None or not self.state.shared:
            return {}
        updates = {
            c: {n: a.numpy() for n, a in reply.content["arrays"].items()}
            for c, reply in good.items()
        }
        spare = len(good) - clients_needed(self.strategy)
        return too_large(
            updates, self.state.shared, self.federation.method.delta_params, most, spare
        )

    def _cap(
        self, numbers: Mapping[int, MetricRecord], images: Mapping[int, int]
    ) -> dict[int, int]:
        """Caps the weights of clients whose images nobody else has counted; returns those that
        are."""
        most = self.config["strategy"].get("max_weight")
        if (
            most is None
            or not self.federation.federated_split.private_data
            or self.federation.server.equal_weights
        ):
            return {}
        caps = capped(images, most)
        for client, weight in caps.items():
            numbers[client]["num-examples"] = weight
        for client in caps.keys() - self._capped:
            self.observer.warn(
                f"client {client} says it has {images[client]:,} images and counts as "
                f"{caps[client]:,} (strategy.max_weight={most:g})"
            )
        self._capped |= caps.keys()
        return caps

    def _row(self, client: int) -> dict:
        """A client's row of the table; where its images are its own, as its node
        said when it last came."""
        if self.registry is not None and self.federation.federated_split.private_data:
            self.table[client] = self.registry.rows.get(client, self.table[client])
        return self.table[client]

    def _aggregate(self, server_round: int, good: Mapping[int, Message]) -> None:
        """The strategy's average of the replies, then what the method makes of it."""
        replies = {client: good[client].content for client in sorted(good)}
        if self.federation.server.equal_weights:
            for content in replies.values():
                content["metrics"]["num-examples"] = 1
        # Before the strategy has them: some of Flower's take the arrays out of the replies.
        updates = {
            c: {name: a.numpy() for name, a in r["arrays"].items()} for c, r in replies.items()
        }
        aggregated, _ = self.strategy.aggregate_train(
            server_round, [good[client] for client in sorted(good)]
        )
        if aggregated is None:
            raise FedPGPError(
                f"round {server_round}: strategy={self.config['strategy']['name']} could not "
                "aggregate the replies"
            )
        averaged = {
            name: aggregated[name].numpy().astype(tensor.dtype)
            for name, tensor in self._reference.items()
        }
        _check_finite(server_round, {**averaged, **strategy_state(self.strategy)[0]})
        shared, self.state.server_state = self.federation.server.update(
            averaged,
            server_round=server_round,
            num_rounds=self.rounds,
            global_params=self.state.shared,
            updates=updates,
            weights={
                client: content["metrics"]["num-examples"] for client, content in replies.items()
            },
            server_state=self.state.server_state,
        )
        _check_finite(server_round, shared)
        self.state.shared = {name: shared[name] for name in self._reference}

    def _evaluate(self, grid: CohortGrid, server_round: int) -> None:
        if server_round == 0:
            self.observer.stage("evaluating before training")
        began = time.perf_counter()
        arrays = ArrayRecord({name: Array(tensor) for name, tensor in self.state.shared.items()})
        clients = list(range(len(self.table)))
        ask = "" if self.state.zero_shot else "zero_shot"

        def configure() -> list[Message]:
            return list(
                self.strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid)
            )

        need = min(self.config["runtime"]["min_clients"], len(clients))

        def check(client: int, content: RecordDict) -> None:
            check_figures(content, self._figures_of(client))

        good, dropped, exchange = self._ask(
            grid, server_round, clients, configure, check, need, ask
        )
        figures = {client: dict(reply.content["metrics"]) for client, reply in good.items()}
        if not self.state.zero_shot:
            self._keep_zero_shot(figures)
        rows = [
            {
                "id": row["id"],
                "domain": row["domain"],
                **self._zero_shot(client),
                **_figures(figures[client]),
            }
            for client, row in enumerate(self.table)
            if client in figures
        ]
        self._account(exchange, "evaluate")
        for client, reason in sorted(dropped.items()):
            self.observer.warn(
                f"round {server_round}: {called(self.table[client])} is not in the evaluation: "
                f"{reason}"
            )
        record = {
            "kind": "eval",
            "round": server_round,
            "clients": len(rows),
            "all_clients": len(self.table),
            **summarize(rows),
            "seconds": time.perf_counter() - began,
            "bytes_up": exchange.traffic.up,
            "bytes_down": exchange.traffic.down,
        }
        self.observer.evaluated(record, rows)

    def _figures_of(self, client: int) -> set[str]:
        """What a client is scored on."""
        own = {"base", "novel"} if self.federation.federated_split.private_data else set()
        return {*self.federation.federated_split.clients[client].eval_sets, "ece"} | own

    def _sample(self, server_round: int) -> list[int]:
        """The clients of a round, from (seed, round) alone, among those that have images to train
        on."""
        able = self._able()
        if server_round == 1 and self.config.get("first_round") == "all":
            return able
        drawn = generator(self.config["seed"], "participants", server_round).choice(
            able, size=participants(self.config, len(able)), replace=False
        )
        return sorted(int(client) for client in drawn)

    def _drop_out(
        self, server_round: int, clients: list[int], need: int
    ) -> tuple[list[int], dict[int, str]]:
        """The clients that stay, and why the others do not: each drops out by a draw from (seed,
        round, client). As many as a round needs always stay."""
        chance = self.config["runtime"].get("dropout", 0.0)
        draws = {
            c: float(generator(self.config["seed"], "dropout", server_round, c).random())
            for c in clients
        }
        most = max(0, len(clients) - need)
        gone = sorted((c for c in clients if draws[c] < chance), key=draws.__getitem__)[:most]
        reason = f"dropped out (runtime.dropout={chance})"
        return [c for c in clients if c not in gone], dict.fromkeys(gone, reason)

    def _able(self) -> list[int]:
        """Clients that can train: they have images to train on, and are not of those that never
        do."""
        return [
            client
            for client, row in enumerate(self.table)
            if row["train_images"] > 0 and row.get("trains", True)
        ]

    def _ask(
        self,
        grid: CohortGrid,
        server_round: int,
        clients: Sequence[int],
        configure: Callable[[], list[Message]],
        check: Callable[[int, RecordDict], None],
        need: int,
        ask: str = "",
        screen: Callable[[Mapping[int, Message]], dict[int, str]] = lambda good: {},
    ) -> tuple[dict[int, Message], dict[int, str], Exchange]:
        """Asks clients; when fewer than ``need`` give a usable answer, asks the others once more.

        Args:
            screen: usable replies -> why some are not, beside the others.

        Returns:
            (client -> usable reply, client -> why it is left out, what it cost).

        Raises:
            FedPGPError: fewer than ``need`` again.
            NoUsableAnswer: most of those asked answered, and no answer can be used.
        """
        if self.registry is not None:
            self._wait_for_returning(self.registry)
        grid.available, grid.exchange = list(clients), Exchange()
        grid.committed = {client: int(self.state.committed[client]) for client in clients}
        grid.job = replace(
            self.job,
            server_round=server_round,
            ask=ask,
            debug=bool(self.config["runtime"].get("debug", False)),
        )
        what = f"round {server_round}"
        messages = {
            message.metadata.dst_node_id: self._with_client_only(message) for message in configure()
        }
        good: dict[int, Message] = {}
        failed: dict[int, str] = {}
        silent: set[int] = set()
        exceptions: set[str] = set()
        told = 0  # accounts whose exceptions have been reported
        for attempt in range(1, TRIES + 1):
            waiting = sorted(set(messages) - set(good))
            kind = {client: messages[client].metadata.message_type for client in waiting}
            fresh = [
                Message(messages[c].content, dst_node_id=c, message_type=kind[c]) for c in waiting
            ]
            with self._watch.during(server_round, *set(kind.values()), ask) as grid.progress:
                replies = grid.send_and_receive(fresh, timeout=self.timeout)
            debug = self.config["runtime"].get("debug", False)
            exceptions |= tell(what, grid.exchange.accounts[told:], self.observer, debug=debug)
            told = len(grid.exchange.accounts)
            for reply in replies:
                client = reply.metadata.src_node_id
                silent.discard(client)
                try:
                    if reply.has_error():
                        silent |= {client} if reply.error.code == NO_ANSWER else set()
                        raise Unusable(reply.error.reason.removeprefix(f"client {client}: "))
                    contained(partial(check, client, reply.content))
                    good[client] = reply
                    failed.pop(client, None)
                except Unusable as reason:
                    failed[client] = str(reason)
            for client, reason in screen(good).items():
                failed[client] = reason
                del good[client]
            if len(good) >= need:
                break
            if attempt < TRIES:
                again = "asking the others again" if good else "asking all again"
                self.observer.warn(
                    f"{what}: {self._few(len(good), len(messages), need, failed)}; {again}"
                )
        for client in failed if self.registry is not None else ():
            self.registry.recheck(client)
        if len(good) < need:
            failure = lost_round(
                f"{what}: {self._few(len(good), len(messages), need, failed)}", failed, exceptions
            )
            of_code = exceptions.issuperset(
                failed.values()
            )  # the round before has nothing to do with it
            spoiled = not of_code and about_numbers(failed.values())
            if not good and len(silent) < len(failed) / 2 and spoiled:
                raise NoUsableAnswer(failure)
            raise failure
        return good, failed, grid.exchange

    def _with_client_only(self, message: Message) -> Message:
        """Add the tensors that the method sends to this message's client alone."""
        client, server_state = message.metadata.dst_node_id, self.state.server_state
        tensors = self.federation.server.download_for(client, server_state) if server_state else {}
        if tensors:
            record = ArrayRecord({name: Array(array) for name, array in tensors.items()})
            message.content = RecordDict({**message.content, CLIENT_ONLY: record})
        return message

    def _say_who_tells_nothing(self) -> None:
        """Warns of clients with their own images that have too few to tell a figure
        (:mod:`clients.disclosure`)."""
        least = self.config["runtime"].get("min_report", 0)
        few = (
            [row for row in self.table if row["test_images"] < least]
            if self.federation.federated_split.private_data
            else []
        )
        if few:
            self.observer.warn(
                f"{len(few)} of {len(self.table)} clients tell no figures: they have fewer than "
                f"{least} test images (runtime.min_report), client {few[0]['id']} "
                f"{few[0]['test_images']}"
            )

    def _check_enough(self) -> None:
        """Refuses a run whose rounds could never have enough clients."""
        taking_part = participants(self.config, len(self._able()))
        least = self.config["runtime"]["min_clients"]
        if self.rounds and least > taking_part:
            raise FedPGPError(
                f"runtime.min_clients={least} is more than the {taking_part} clients that take "
                "part in a round"
            )
        if (
            self.rounds
            and self.state.shared
            and (needed := clients_needed(self.strategy)) > taking_part
        ):
            name = self.config["strategy"]["name"]
            raise FedPGPError(
                f"strategy={name} needs {needed} clients in a round; clients and participation "
                f"give {taking_part}"
            )

    def _few(self, good: int, asked: int, need: int, failed: Mapping[int, str]) -> str:
        text = f"{good} of {asked} clients gave a usable answer, {need} are needed"
        if need == self.config["runtime"]["min_clients"]:
            text += " (runtime.min_clients)"
        if failed:
            client = min(failed)
            text += f". Client {client}: {failed[client]}"
        return text

    # Questions. -----------------------------------------------------------------------------------

    def _describe(self, grid: CohortGrid) -> Rows:
        """Every client's row of the table: domain, numbers of images, classes."""
        clients = list(range(len(self.state.committed)))
        answers = self._query(grid, clients, "clients", ConfigRecord())
        if missing := [client for client in clients if client not in answers]:
            raise FedPGPError(
                f"{len(missing)} of {len(clients)} clients did not say what they have (first: "
                f"client {missing[0]})"
            )
        return [answers[client] for client in clients]

    def _wait_for_clients(self, registry: NodeRegistry) -> Rows:
        """Waits for the clients' nodes; returns every client's row of the table.

        A new run needs all of them; it is refused early when only those are missing whose nodes
        cannot take part. A resumed one needs no more than a round does: who is missing has its
        row from the checkpoint.
        """
        clients = range(len(self.state.committed))
        rows = {row["id"]: row for row in self.table}
        patience = RETURN_PATIENCE if rows else math.inf
        end = time.monotonic() + min(patience, self.timeout or math.inf)
        here = 0
        registry.refresh()
        while missing := [client for client in clients if client not in registry.rows]:
            if self.stop.is_set():
                raise Interrupted
            if len(registry.rows) > here:
                here = len(registry.rows)
                self.observer.progress(here, len(clients), "clients that are there")
            if time.monotonic() > end or (
                not registry.waiting and registry.rejected_for_good.issuperset(missing)
            ):
                if unknown := [client for client in missing if client not in rows]:
                    raise FedPGPError(
                        "; ".join(
                            [_not_there(unknown, registry.waiting), *registry.rejected.values()]
                        )
                    )
                registry.stop_waiting()
                break
            time.sleep(0.2)
            registry.refresh()
        return [registry.rows.get(client) or rows[client] for client in clients]

    def _wait_for_returning(self, registry: NodeRegistry) -> None:
        """Wait until nodes that have just come (back) have answered the handshake, so that the next
        round has them: once, and no more before they answer."""
        end = time.monotonic() + RETURN_PATIENCE
        registry.refresh()
        while registry.waiting and not self.stop.is_set():
            if time.monotonic() > end:
                registry.stop_waiting()
                break
            time.sleep(0.2)
            registry.refresh()

    def _samples(self, grid: CohortGrid, per_client: int = 6, most: int = 8) -> Rows:
        """Images with answers: of the first client of each domain, or of the first few clients."""
        first: dict[object, int] = {}
        for client, row in enumerate(self.table):
            if row["test_images"]:
                first.setdefault(row["domain"] if row["domain"] is not None else client, client)
        clients = sorted(first.values())[:most]
        if not clients:
            return []
        answers = self._query(grid, clients, "samples", ConfigRecord({"per-client": per_client}))
        return [sample for client in sorted(answers) for sample in answers[client]]

    def _query(
        self, grid: CohortGrid, clients: Sequence[int], ask: str, config: ConfigRecord
    ) -> dict[int, object]:
        content = RecordDict({"config": config})
        if ask == "samples":
            content["arrays"] = ArrayRecord(
                {name: Array(tensor) for name, tensor in self.state.shared.items()}
            )

        def configure() -> list[Message]:
            return [
                Message(content, dst_node_id=client, message_type=MessageType.QUERY)
                for client in clients
            ]

        answers: dict[int, object] = {}

        def check(client: int, content: RecordDict) -> None:
            if ask == "samples":
                answers[client] = read_samples(json_answer(content, SAMPLES_BYTES), client)
            else:
                answers[client] = read_row(json_answer(content, ROW_BYTES), client, simulated=True)

        need = len(clients) if ask == "clients" else 0
        good, _, exchange = self._ask(
            grid, self.state.server_round, clients, configure, check, need, ask
        )
        self._account(exchange, "encode" if ask == "clients" else None)
        return {client: answers[client] for client in good}

    # Memory. --------------------------------------------------------------------------------------

    def _account(self, exchange: Exchange, what: str | None) -> None:
        """Adds up bytes, the slowest node's seconds and each process's peak memory. Questions are
        no part of a federation's cost: not their bytes (``encode``), nor their seconds (None).
        """
        for account in exchange.accounts:
            process = account["process"]
            self.peak_memory[process] = max(self.peak_memory.get(process, 0.0), account["rss_mb"])
            if "gpu_mb" in account:
                self.peak_gpu_memory[process] = max(
                    self.peak_gpu_memory.get(process, 0.0), account["gpu_mb"]
                )
            if what == "train":
                machine = process.rpartition("/")[0] or process
                self.state.placed[machine] = self.state.placed.get(machine, 0) + account["clients"]
        if what in ("train", "evaluate"):
            self.state.traffic += exchange.traffic
        if what is not None:
            self.state.seconds[what] += max(
                (account["seconds"] for account in exchange.accounts), default=0.0
            )

    def _keep_zero_shot(self, figures: Mapping[int, Mapping[str, float]]) -> None:
        names = {name for own in figures.values() for name in own if name.startswith("zero_shot.")}
        self.state.zero_shot = {
            name: np.array(
                [figures.get(client, {}).get(name, np.nan) for client in range(len(self.table))]
            )
            for name in sorted(names)
        }

    def _zero_shot(self, client: int) -> dict[str, float]:
        return {
            name: float(v[client])
            for name, v in self.state.zero_shot.items()
            if not np.isnan(v[client])
        }

    def _clock(self) -> None:
        self.state.seconds["total"] = self._before + time.perf_counter() - self._began

    def _save(self) -> None:
        self._clock()
        strategy_tensors, strategy_values = strategy_state(self.strategy)
        # "rule" and "seats" are names in the file: checkpoints of earlier versions have them.
        tensors = {
            **self.state.tensors(),
            **{f"rule/{path}": tensor for path, tensor in strategy_tensors.items()},
        }
        info = {
            "run": self.job.run,
            "config": self.config,
            "model_sha256": self.federation.method.task.clip.fingerprint,
            "data": self._data,
            "rule": strategy_values,
            "observer": self.observer.mark(),
            "table": [] if self.registry is None else self.table,
            "seats": {} if self.registry is None else self.registry.keys.fingerprints,
            **self.state.values(),
        }
        save_checkpoint(self.folder / "checkpoint", self.state.server_round, tensors, info)

    def _seed_libraries(self, server_round: int) -> None:
        """Seed the libraries' global generators, from which Flower draws (order of clients,
        noise of privacy wrappers); "rule" is the name of the stream."""
        seed = int(generator(self.config["seed"], "rule", server_round).integers(2**32))
        random.seed(seed)
        np.random.seed(seed)

    def _supersede_workers(self) -> None:
        """Work still under way is of no use any more: a newer attempt's claim ends it
        (:mod:`clients.watchdog`)."""
        store = PrivateStore(self.folder / "private", self.job.run, self.job.attempt + 1)
        try:
            store.claim()
        except FedPGPError as error:
            self.observer.warn(str(error))


def participants(config: Mapping, able: int) -> int:
    """Clients that take part in a round, of those that are able to."""
    return min(able, max(1, round(config["participation"] * able)))


def _not_there(clients: Sequence[int], waiting: int) -> str:
    """What to say of clients that were waited for in vain."""
    text = f"the nodes of clients {', '.join(map(str, clients))} are not there"
    if waiting:
        text += (
            f"; {waiting} that are connected did not answer yet: if they are still encoding "
            "their images, give the next run more seconds (runtime.round_timeout)"
        )
    return text


def _check_finite(server_round: int, shared: Mapping[str, np.ndarray]) -> None:
    for name, tensor in shared.items():
        if not np.isfinite(tensor).all():
            raise FedPGPError(
                f"round {server_round}: the aggregated tensor {name} is NaN or Inf; try a "
                "smaller lr, another strategy or a bound on updates (strategy.max_update_norm)"
            )


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "." in name}
