"""Runs one experiment from its configuration to its folder, in whichever runtime; new, or
resumed."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from clients.client_app import client_app, federation_of
from clients.failures import describe
from clients.machine import peak_rss_mb
from clients.messages import Job
from clients.private_state import PrivateStore, owner
from experiments.console import Console
from experiments.latest import followed, point_latest
from experiments.loggers import Logger, make_logger
from experiments.memory import start_peak
from experiments.more_rounds import (
    begin_more_rounds,
    check_more_rounds,
    finished_already,
    prompts_of,
    say_finished,
)
from experiments.overrides import resume_command, user_path
from experiments.quiet import quiet
from experiments.reporting.formatting import format_privacy
from experiments.reporting.page import write_report
from experiments.run_folder import RunFolder, default_folder
from experiments.runtimes.inline import InlineGrid, run_inline
from experiments.runtimes.ray import ray_cluster
from experiments.runtimes.ray_session import end_sessions
from experiments.settings import RESUMABLE, check, check_runtime, flatten, may_change_on_resume
from fedpgp.data_record import check_same_data, data_record
from fedpgp.errors import FedPGPError, RepeatingError
from fedpgp.evaluation import select
from strategies.checkpoint import check_complete, checkpoints, latest_checkpoint
from strategies.flower_strategies import make_strategy
from strategies.grid import Interrupted
from strategies.server import Server

HEAD_START = 1.0
"""Seconds that a run waits for its data set and model before it starts Ray beside them."""


class Stopped(Exception):
    """The person asked to stop; the run is saved. ``code`` is the exit status (130 for
    Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def start(
    config: Mapping,
    command: str = "",
    *,
    federation_of: Callable = federation_of,
    grid: Grid | None = None,
) -> dict:
    """Runs a new experiment.

    Args:
        config: the resolved configuration (conf/config.yaml's keys).
        command: the command line, for config.yaml.
        federation_of: configuration as JSON text -> federation; tests put small ones here.
        grid: Flower's, when it is Flower that started the ServerApp; None starts the
            runtime of the configuration.

    Returns:
        what summary.json holds.

    Raises:
        FedPGPError: anything a person can mend.
        Stopped: the person asked to stop.
    """
    began = time.perf_counter()
    quiet(config["verbose"])
    check(config)
    check_runtime(config, deployed=grid is not None)
    make_strategy(config["strategy"]["name"], config["strategy"])
    if config.get("init_from"):  # before this run is the latest itself
        config = {**config, "init_from": str(followed(user_path(config["init_from"])))}
    own_name = not config["run_dir"]
    path = default_folder(config["experiment_name"]) if own_name else user_path(config["run_dir"])
    config = {**config, "run_dir": str(path), "resume": None}
    folder = RunFolder.create(path, config, command)
    if own_name:
        point_latest(path)
    with folder.locked():
        return _run(folder, config, began, federation_of, resumed=False, grid=grid)


def resume(
    path: Path,
    changes: Mapping | None = None,
    *,
    federation_of: Callable = federation_of,
    grid: Grid | None = None,
) -> dict:
    """Resumes a run that was stopped or killed, to the same numbers as if it had not been; a
    finished one only to more rounds.

    Args:
        path: its folder.
        changes: settings that may differ this time
            (``experiments.settings.RESUMABLE``), and ``rounds``.
        federation_of, grid: as in :func:`start`.

    Returns, raises: as :func:`start`.
    """
    began = time.perf_counter()
    path = followed(path)
    folder, config = RunFolder.open(path)
    config |= {
        key: value for key, value in (changes or {}).items() if key in (*RESUMABLE, "rounds")
    }
    config |= {"run_dir": str(path), "resume": None}
    if config["runtime"]["name"] == "inline" and "runtime" not in (changes or {}):
        config["runtime"] = {
            **config["runtime"],
            "round_timeout": None,
        }  # an older version's, which nobody could keep
    if (summary := finished_already(folder, config["rounds"])) is not None:
        print(say_finished(path, summary["rounds"], folder.command), flush=True)
        return summary
    quiet(config["verbose"])
    check(config)
    check_runtime(config, deployed=grid is not None)
    with folder.locked():
        return _run(folder, config, began, federation_of, resumed=True, grid=grid)


def _run(
    folder: RunFolder,
    config: dict,
    began: float,
    federation_of: Callable,
    *,
    resumed: bool,
    grid: Grid | None = None,
) -> dict:
    start_peak()  # in a sweep the runs before this one were in the same process
    console = Console(config["rounds"])
    stopper = Stopper()
    logger: Logger | None = None
    server: Server | None = None
    summary: dict | None = None
    observer: _Observer | None = None
    initial: dict = {}
    checkpoint = None
    try:
        with stopper.listening():
            checkpoint = (
                latest_checkpoint(folder.path / "checkpoint", console.warn) if resumed else None
            )
            if checkpoint:
                check_complete(folder.path / "checkpoint", checkpoint[1])
                _same_configuration(checkpoint[1]["config"], config)
            elif resumed:
                folder.refuse_lost_rounds()
            folder.cut_metrics(checkpoint[1]["observer"]["metrics_bytes"] if checkpoint else 0)
            private = folder.path / "private"
            run, attempt = owner(private)
            run = run or (checkpoint[1]["run"] if checkpoint else uuid.uuid4().hex)
            store = PrivateStore(private, run, attempt + 1)
            store.claim()
            text = json.dumps(_for_clients(config))
            place = "" if grid is not None else str(private.resolve())
            job = Job(run, store.attempt, store.give_configuration(text), place, 0)
            logger = make_logger(folder.path, config, run)
            observer = _Observer(folder, config, console, logger)

            def prepare():
                federation = federation_of(text)
                if checkpoint:
                    said = check_same_data(
                        folder.path,
                        checkpoint[1].get("data"),
                        data_record(federation.federated_split),
                    )
                    console.note(said) if said else None
                elif config.get("init_from"):
                    initial.update(
                        prompts_of(user_path(config["init_from"]), federation, console.warn)
                    )
                federation.initial_shared()  # loads the model, or its cached parts
                return federation

            def make_server(job: Job, federation, nodes: int = 1) -> Server:
                observer.class_names, observer.notes = (
                    federation.dataset.class_names,
                    federation.dataset.notes,
                )
                console.one_prompt = federation.method.shares_one_model
                for note in federation.dataset.notes:
                    console.note(note)
                if privacy := federation.method.privacy(config["rounds"]):
                    console.warn(f"method={config['method']['name']}: {format_privacy(privacy)}")
                strategy = make_strategy(config["strategy"]["name"], config["strategy"])
                if checkpoint and checkpoint[1]["config"]["rounds"] < config["rounds"]:
                    begin_more_rounds(folder, config["rounds"])
                return Server(
                    config,
                    federation,
                    strategy,
                    folder.path,
                    job,
                    observer,
                    stop=stopper.event,
                    checkpoint=checkpoint,
                    initial=initial or None,
                    nodes=nodes,
                    configuration=None if grid is None else text,
                    began=began,
                )

            if checkpoint:
                console.note(f"resuming after round {checkpoint[1]['round']} of {config['rounds']}")
            server = _work(
                config,
                job,
                prepare,
                make_server,
                partial(client_app, federation_of),
                stopper,
                console,
                grid,
            )
            if server.failure is not None:
                raise server.failure
            if stopper.event.is_set():
                raise Interrupted
        summary = _finish(folder, config, server, "finished", console)
    except FedPGPError as error:
        if server is not None and checkpoints(folder.path / "checkpoint"):
            _save_what_there_is(folder, config, server, console)
            console.note(
                "what is done is saved; "
                f"{_what_helps(error, resume_command(folder.command, folder.path))}"
            )
        elif not resumed and not checkpoints(folder.path / "checkpoint"):
            # Refused before anything was done: the same run_dir is free for the next try.
            if observer is not None and observer.last_traceback:
                console.note(observer.last_traceback)  # errors.log goes with the folder
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    except Interrupted:
        summary = _save_what_there_is(folder, config, server, console)
    finally:
        if logger is not None:
            logger.close(summary)
        console.close()
    again = resume_command(folder.command, folder.path)
    before = checkpoint[1]["seconds"].get("encode", 0.0) if checkpoint else 0.0
    console.summary(summary, folder.path, time.perf_counter() - began, again, before)
    if summary["status"] != "finished":
        raise Stopped(stopper.code)
    return summary


def _work(
    config: Mapping,
    job: Job,
    prepare: Callable[[], object],
    make_server: Callable[..., Server],
    make_app: Callable[[], ClientApp],
    stopper: "Stopper",
    console: Console,
    flower: Grid | None,
) -> Server:
    """Runs server and clients in the runtime of the configuration, or the server alone
    where Flower runs both."""
    deadline = float(config["runtime"]["round_timeout"] or 0)
    if flower is not None:
        stopper.install()  # Flower has handlers of its own
        console.stage("loading the model")
        server = make_server(replace(job, deadline=deadline), prepare())
        server.try_run(flower)
        return server
    if config["runtime"]["name"] == "inline":
        grid = InlineGrid(make_app())
        console.stage("loading the model")
        server = make_server(job, prepare())
        stopper.breaks_in = lambda: grid.working
        run_inline(server.app(), grid)
        return server
    console.stage("starting Ray, loading the model")
    with ThreadPoolExecutor(1) as aside:
        prepared = aside.submit(prepare)  # while Ray starts, most of which is waiting
        with contextlib.suppress(
            TimeoutError
        ):  # what is wrong with the configuration is said before Ray is started
            prepared.result(timeout=HEAD_START)
        size = config["clients"]
        with ray_cluster(
            config["runtime"], config["device"], size, verbose=config["verbose"]
        ) as workers:
            stopper.install()  # Ray puts its own handler for SIGTERM
            job = replace(job, threads=workers.threads, deadline=deadline)
            server = make_server(job, prepared.result(), workers.count)
            workers.run(server.app(), make_app)
    return server


class Stopper:
    """Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once.

    Attributes:
        event: set by the first signal.
        code: exit status, 128 + the signal.
        breaks_in: True while the signal may interrupt what the main thread does (client
            code in the inline runtime).
    """

    def __init__(self):
        self.event, self.code = threading.Event(), 0
        self.breaks_in: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals inside the block (in the main thread; elsewhere signals
        are somebody else's)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Takes both signals, from whoever had them."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.event.is_set():
            end_sessions()
            os._exit(128 + number)
        self.code = 128 + number
        self.event.set()
        # Not through the console: the signal may have come while it was writing.
        os.write(2, b"\nstopping; what is done is saved (once more ends at once)\n")
        if self.breaks_in():
            raise Interrupted


class _Observer:
    """Tells the run folder, the console and the logger what the server does."""

    def __init__(self, folder: RunFolder, config: Mapping, console: Console, logger: Logger):
        self.folder, self.config, self.console, self.logger = folder, config, console, logger
        self.class_names: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.last_traceback = ""
        self.stage, self.progress, self.warn = console.stage, console.progress, console.warn
        self._train: dict | None = None
        self._evaluation: dict | None = None

    def traceback(self, text: str) -> None:
        self.folder.traceback(text)
        self.last_traceback = text
        if self.config["verbose"]:
            self.console.note(text)

    def clients(self, table: list[dict]) -> None:
        self.console.names = {row["id"]: row["name"] for row in table if row.get("name")}
        self.folder.clients(table, self.config["partition"], self.class_names, self.notes)

    def trained(self, record: dict) -> None:
        self._train = record
        self._tell(record)

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self._evaluation = record
        self._tell(record)
        self.folder.client_accuracy(rows)

    def samples(self, samples: list[dict]) -> None:
        self.folder.json("samples.json", {"samples": samples})

    def mark(self) -> dict:
        self.console.round(self._train, self._evaluation)
        self._train = self._evaluation = None
        return {"metrics_bytes": self.folder.metrics_length()}

    def go_back(self, mark: dict, server_round: int) -> None:
        self.folder.go_back(mark["metrics_bytes"], server_round)
        self._train = self._evaluation = None

    def _tell(self, record: dict) -> None:
        self.folder.metric(record)
        self.logger.log(record)


def _finish(
    folder: RunFolder, config: Mapping, server: Server | None, status: str, console: Console
) -> dict:
    """Writes summary.json and report.html; a page that cannot be made is a warning,
    and the result stands."""
    selection = config["protocol"].get("selection", "last")
    accuracy, rounds = select(folder.evaluations, selection)
    summary = {
        "method": config["method"]["name"],
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "partition": config["partition"]["scheme"],
        "protocol": config["protocol"]["name"],
        "seed": config["seed"],
        "rounds": config["rounds"],
        "clients": len(folder.table) or config["clients"],
        "status": status,
        "accuracy": accuracy,
        "evaluated_clients": folder.evaluations[-1].get("clients") if folder.evaluations else None,
    }
    if selection != "last":
        summary["selected_rounds"] = rounds
    if server is not None:
        summary["one_prompt"] = server.federation.method.shares_one_model
        summary["privacy"] = server.federation.method.privacy(server.state.server_round)
        summary |= _cost(server)
        folder.json("machines.json", {"trained_on": dict(sorted(server.state.placed.items()))})
    folder.json("summary.json", summary)
    try:
        write_report(folder.path)
    except Exception as error:
        again = shlex.join(["python", "-m", "experiments.report", str(folder.path)])
        console.warn(
            f"report.html could not be made ({describe(error)}); the result stands. Try again: "
            f"{again}"
        )
    return summary


def _cost(server: Server) -> dict:
    state, traffic = server.state, server.state.traffic
    busy = sum(state.seconds[what] for what in ("encode", "train", "evaluate"))
    own = peak_rss_mb()
    mine = f"/{os.getpid()}"
    return {
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "wire_bytes_up": traffic.wire_up,
        "wire_bytes_down": traffic.wire_down,
        "seconds": {**state.seconds, "overhead": max(0.0, state.seconds["total"] - busy)},
        "images_per_second": state.images / state.seconds["train"]
        if state.seconds["train"]
        else None,
        "peak_rss_mb": own
        + sum(peak for process, peak in server.peak_memory.items() if not process.endswith(mine)),
        "peak_gpu_mb": sum(server.peak_gpu_memory.values()) or None,
    }


def _save_what_there_is(
    folder: RunFolder, config: Mapping, server: Server | None, console: Console
) -> dict:
    try:
        return _finish(folder, config, server, "interrupted", console)
    except FedPGPError as error:  # a full disk must not hide why the run stopped
        console.warn(str(error))
        return {"status": "interrupted", "accuracy": None}


def _same_configuration(saved: Mapping, config: Mapping) -> None:
    """Refuses a config.yaml that is not the one the checkpoint was made with; more
    rounds may be possible."""
    check_more_rounds(saved, saved["rounds"], config["rounds"])
    old, new = flatten(saved), flatten(config)
    differing = sorted(
        k
        for k in {**old, **new}
        if not may_change_on_resume(k) and k != "rounds" and old.get(k) != new.get(k)
    )
    if differing:
        shown = ", ".join(
            f"{key} ({old.get(key)} in the checkpoint, {new.get(key)} now)" for key in differing
        )
        raise FedPGPError(f"the checkpoint was made with another configuration: {shown}")


def _for_clients(config: Mapping) -> dict:
    """The configuration as clients get it: without what is the server's business alone."""
    return {
        key: value
        for key, value in config.items()
        if key not in ("run_dir", "resume", "init_from", "verbose", "experiment_name", "logger")
    }


def _what_helps(error: FedPGPError, command: str) -> str:
    """What to do after this error: ``command`` resumes the run, where that can help."""
    if not isinstance(error, RepeatingError):
        return f"resume with: {command}"
    return f"{error.advice} resume with: {command}" if error.resumable else error.advice
