"""One attempt at a run: what is there already of it, and what its server is made of."""

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from clients.messages import Job
from clients.private_state import PrivateStore, owner
from clients.state_shards import shards_for
from experiments.callbacks.base import Callbacks
from experiments.callbacks.checkpoint import CheckpointMark, marked_length
from experiments.callbacks.console import Console
from experiments.callbacks.live_report import LiveReport
from experiments.callbacks.loggers.base import make_logger
from experiments.callbacks.run_folder import RunFolderCallback
from experiments.finished_run import (
    begin_more_rounds,
    check_more_rounds,
    from_its_prompts,
    prompts_of,
)
from experiments.membership import KEYS, check_members, record_members
from experiments.monitoring.folders import RunMetrics
from experiments.monitoring.server import MetricsServer
from experiments.overrides import user_path
from experiments.reporting.formatting import format_attackers, format_privacy
from experiments.resume_rules import may_change_on_resume
from experiments.run_folder import RunFolder
from experiments.settings import flatten
from fedpgp.attacks import attackers_of
from fedpgp.class_embeddings import class_embeddings_of
from fedpgp.config import Config
from fedpgp.data_record import check_same_data, data_record
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.onboarding.check import check_private_tensors
from fedpgp.protocols import FederatedSplit, make_protocol
from fedpgp.protocols.onboarding_options import OnboardingOptions
from fedpgp.updates.client_privacy import SEEDED_NOISE
from strategies.checkpoint import (
    OTHER_WEIGHTS,
    check_complete,
    check_fits,
    checkpoints,
    latest_checkpoint,
    same_model,
)
from strategies.flower_strategies import beyond_theorem
from strategies.membership import admitted
from strategies.sampling import participants
from strategies.server import Server
from strategies.spent_record import count_spent
from strategies.wrappers import NOISE, configured_strategy


class Attempt:
    """One attempt at a run; a resumed run has several.

    Args:
        folder: of the run.
        config: of the run.
        console: says what a person should know.
        stop: set when the person wants to stop.
        federation_of: configuration as JSON text -> federation.
        resumed: whether there was an attempt before.
        deployed: whether the clients are on nodes of their own.
        began: when the attempt began (``time.perf_counter``).

    Attributes:
        checkpoint: (tensors, info) to resume from; None where the run begins.
        job: run id, attempt and configuration, as every message carries them.
        record: writes the run's folder.
        logger: of the configuration.

    Raises:
        FedPGPError: a checkpoint of another configuration, or a damaged one.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping,
        console: Console,
        stop: threading.Event,
        federation_of: Callable,
        *,
        resumed: bool,
        deployed: bool,
        began: float,
    ):
        self.folder, self.config, self.console = folder, config, console
        self._stop, self._federation_of, self._began = stop, federation_of, began
        self._deployed = deployed
        self._initial: dict[str, np.ndarray] = {}
        self.checkpoint = self._checkpoint() if resumed else None
        info = self.checkpoint[1] if self.checkpoint else None
        folder.cut_metrics(marked_length(info))
        private = folder.path / "private"
        run, attempt = owner(private)
        run = run or (info["run"] if info else uuid.uuid4().hex)
        self._store = store = PrivateStore(private, run, attempt + 1)
        runtime = Config.of(config).runtime
        of_run = {"new": not attempt, "one_machine": runtime.address is None}
        store.claim(0 if deployed else shards_for(config["clients"], private, **of_run))
        self._text = json.dumps(for_clients(config))
        place = "" if deployed else str(private.resolve())
        self.job = Job(run, store.attempt, store.give_configuration(self._text), place, 0)
        self.record = RunFolderCallback(folder, config["partition"])
        self.logger = make_logger(folder.path, config, run, console.warn)
        live = [LiveReport(folder.path, console.warn)] if runtime.live else []
        self._callbacks = Callbacks(
            [self.record, console, self.logger, *live, CheckpointMark(folder)]
        )
        self._metrics: MetricsServer | None = None
        if runtime.metrics_port is not None:
            of_run = RunMetrics(folder.path, config["rounds"])
            self._metrics = MetricsServer(runtime.metrics_host, runtime.metrics_port, of_run)

    def close(self, summary: Mapping | None) -> None:
        """End what watches the run.

        Args:
            summary: of the run, for its logger; None where it has none.
        """
        if self._metrics is not None:
            self._metrics.close()
        self.logger.close(summary)
        with contextlib.suppress(FedPGPError):  # of a disk that is full, say; nothing is lost
            self._store.tidy()

    @property
    def encoded_before(self) -> float:
        """Seconds of encoding images that earlier attempts took."""
        return self.checkpoint[1]["seconds"].get("encode", 0.0) if self.checkpoint else 0.0

    def federation(self) -> Federation:
        """Return the federation, its model loaded; of a run that is resumed, with the same data
        and weights."""
        federation = self._federation_of(self._text)
        if self.checkpoint:
            recorded = self.checkpoint[1].get("data")
            current = data_record(_of_clients(federation, self.checkpoint[1]["config"]["clients"]))
            if said := check_same_data(self.folder.path, recorded, current):
                self.console.note(said)
        elif self.config.get("init_from"):
            other = user_path(self.config["init_from"])
            self._initial.update(prompts_of(other, federation, self.console.warn))
        federation.models.initial_shared()  # loads the model, or its cached parts
        protocol = make_protocol(self.config["protocol"])
        if isinstance(protocol, OnboardingOptions):
            check_private_tensors(federation, protocol)
        if self.checkpoint:
            tensors, info = self.checkpoint
            if len(tensors["committed"]) == info["config"]["clients"]:  # others may have joined
                tensors = admitted(tensors, federation)
            check_fits(self.folder.path / "checkpoint", tensors, federation)
            clip = federation.method.task.clip
            if not same_model(self.checkpoint[1], clip.fingerprint):
                raise FedPGPError(
                    f"{OTHER_WEIGHTS}: restore them, or start a new run"
                    f"{from_its_prompts(self.config, self.folder.path)}"
                )
        return federation

    def server(self, job: Job, federation: Federation, nodes: int = 1) -> Server:
        """Return the server.

        Args:
            job: the attempt's, completed by the runtime.
            federation: the server's.
            nodes: number of nodes, in a simulation.
        """
        config, dataset, method = self.config, federation.dataset, federation.method
        self.record.class_names, self.record.notes = dataset.class_names, dataset.notes
        self.record.tasks = federation.federated_split.tasks
        self.console.one_prompt = method.shares_one_model
        for note in dataset.notes:
            self.console.note(note)
        if privacy := method.privacy(config["rounds"]):
            self.console.warn(f"method={config['method']['name']}: {format_privacy(privacy)}")
        if since := federation.federated_split.after(config["rounds"]):
            self.console.warn(
                f"from round {since} on clients would have other images, or be tested on more; "
                f"this run ends after rounds={config['rounds']}"
            )
        if attackers := attackers_of(config, federation.federated_split):
            name, clients = config["attack"]["name"], federation.num_clients
            self.console.warn(f"attack={format_attackers(name, attackers.clients, clients)}")
        typed = Config.of(config)
        class_embeddings = class_embeddings_of(federation.models, federation.base)
        strategy = configured_strategy(typed, class_embeddings)
        if typed.strategy.wrap:
            self.console.warn(NOISE)
        taking_part = participants(typed, federation.federated_split.trainers)
        if said := beyond_theorem(strategy, taking_part):
            self.console.warn(said)
        if typed.privacy.options.get("seeded_noise"):
            self.console.warn(SEEDED_NOISE)
        if self.checkpoint:
            before, done = self.checkpoint[1]["config"], self.checkpoint[1]["round"]
            record_members(self.folder.path, before, config, done)
            if before["rounds"] < config["rounds"]:
                begin_more_rounds(self.folder, config["rounds"])
        return Server(
            config,
            federation,
            strategy,
            self.folder.path,
            job,
            self._callbacks,
            stop=self._stop,
            checkpoint=self.checkpoint,
            initial=self._initial or None,
            nodes=nodes,
            configuration=self._text if self._deployed else None,
            began=self._began,
        )

    def _checkpoint(self) -> tuple[dict[str, np.ndarray], dict] | None:
        """The newest checkpoint, of this configuration; None where nothing was trained yet."""
        found = latest_checkpoint(self.folder.path / "checkpoint", self.console.warn)
        if found is None:
            self.folder.refuse_lost_rounds()
            return None
        check_complete(self.folder.path / "checkpoint", found[1])
        _same_configuration(found[1]["config"], self.config)
        newest = checkpoints(self.folder.path / "checkpoint")[-1]
        private = Config.of(self.config).privacy.name != "none"
        if private and newest.name != f"round_{found[1]['round']:05d}.safetensors":
            raise FedPGPError(
                f"{newest} is damaged, and privacy does not resume from the round before: its "
                "noise would be drawn twice, which no epsilon accounts for; start anew with "
                "another run_dir"
            )
        if lacking := count_spent(self.folder.path / "checkpoint", found[1]):
            self.console.warn(
                f"noise was drawn for {lacking} round(s) that no checkpoint has any more; they are "
                "done again and count twice"
            )
        return found


def _same_configuration(saved: Mapping, config: Mapping) -> None:
    """Refuses a config.yaml that is not the one the checkpoint was made with; more
    rounds may be possible."""
    check_more_rounds(saved, saved["rounds"], config["rounds"])
    check_members(saved, config)
    old, new = flatten(saved), flatten(config)
    differing = sorted(
        k
        for k in {**old, **new}
        if not (may_change_on_resume(k) or k in ("rounds", *KEYS)) and old.get(k) != new.get(k)
    )
    if differing:
        shown = ", ".join(
            f"{key} ({old.get(key)} in the checkpoint, {new.get(key)} now)" for key in differing
        )
        raise FedPGPError(f"the checkpoint was made with another configuration: {shown}")


def _of_clients(federation: Federation, clients: int) -> FederatedSplit:
    """The split of the clients that a run had before others joined it."""
    whole = federation.federated_split
    everybody = clients >= len(whole.clients)
    return whole if everybody else replace(whole, clients=whole.clients[:clients])


def for_clients(config: Mapping) -> dict:
    """The configuration as clients get it: without what is the server's business alone."""
    return {
        key: value
        for key, value in config.items()
        if key not in ("run_dir", "resume", "init_from", "verbose", "experiment_name", "logger")
    }
