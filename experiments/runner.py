"""Runs one experiment from its configuration to its folder, in whichever runtime; new, or
resumed."""

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from clients.client_app import client_app, federation_of
from experiments.attempt import Attempt
from experiments.callbacks.console import Console
from experiments.finished_run import finished_already, say_finished
from experiments.latest_link import link_latest, resolve_latest, unlink_latest
from experiments.membership import check_new
from experiments.memory import start_peak
from experiments.newcomers import onboard_newcomers
from experiments.overrides import resume_command, user_path
from experiments.quiet import quiet
from experiments.resume_rules import TAKEN
from experiments.run_checks import check_run, check_stored, choose_dtype
from experiments.run_folder import RunFolder, default_folder
from experiments.runtimes.run_server import run_server
from experiments.stopping import Stopped, Stopper
from experiments.summary import finish, save_what_there_is
from fedpgp.errors import FedPGPError, RepeatingError
from strategies.checkpoint import checkpoints
from strategies.exchange import Interrupted
from strategies.server import Server


def start(
    config: Mapping,
    command: str = "",
    *,
    federation_of: Callable = federation_of,
    grid: Grid | None = None,
) -> dict:
    """Run a new experiment.

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
    check_run(config, deployed=grid is not None)
    check_new(config)
    config = choose_dtype(config)
    if config.get("init_from"):  # before this run is the latest itself
        config = {**config, "init_from": str(resolve_latest(user_path(config["init_from"])))}
    own_name = not config["run_dir"]
    path = default_folder(config["experiment_name"]) if own_name else user_path(config["run_dir"])
    config = {**config, "run_dir": str(path), "resume": None}
    folder = RunFolder.create(path, config, command)
    if own_name:
        link_latest(path)
    with folder.locked():
        return _run(folder, config, began, federation_of, resumed=False, grid=grid)


def resume(
    path: Path,
    changes: Mapping | None = None,
    *,
    federation_of: Callable = federation_of,
    grid: Grid | None = None,
) -> dict:
    """Resume a run that was stopped or killed, to the same numbers as if it had not been; a
    finished one only to more rounds.

    Args:
        path: its folder.
        changes: settings that may differ this time
            (``experiments.resume_rules``), and ``rounds``.
        federation_of, grid: as in :func:`start`.

    Returns, raises: as :func:`start`.
    """
    began = time.perf_counter()
    path = resolve_latest(path)
    folder, config = RunFolder.open(path)
    stored = dict(config)
    config |= {key: value for key, value in (changes or {}).items() if key in TAKEN}
    config |= {"run_dir": str(path), "resume": None}
    if config["runtime"]["name"] == "inline" and "runtime" not in (changes or {}):
        config["runtime"] = {
            **config["runtime"],
            "round_timeout": None,
        }  # an older version's, which nobody could keep
    if (summary := finished_already(folder, config["rounds"])) is not None:
        print(say_finished(path, summary["rounds"], folder.command, stored), flush=True)
        return summary
    check_stored(path, stored)
    quiet(config["verbose"])
    check_run(config, deployed=grid is not None)
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
    console, stopper = Console(config["rounds"], tracebacks=config["verbose"]), Stopper()
    again = resume_command(folder.command, folder.path)
    attempt: Attempt | None = None
    server: Server | None = None
    summary: dict | None = None
    about = {"resumed": resumed, "deployed": grid is not None, "began": began}
    try:
        with stopper.listening():
            attempt = Attempt(folder, config, console, stopper.event, federation_of, **about)
            if attempt.checkpoint:
                done = attempt.checkpoint[1]["round"]
                console.note(f"resuming after round {done} of {config['rounds']}")
            make_app = partial(client_app, federation_of)
            make = attempt.federation, attempt.server, make_app
            server = run_server(config, attempt.job, *make, stopper, console, grid)
            if server.failure is not None:
                raise server.failure
            if stopper.event.is_set():
                raise Interrupted
            found = onboard_newcomers(config, server, folder.path, stopper.event, console)
        summary = finish(folder, config, server, "finished", console, found)
    except FedPGPError as error:
        if server is not None and checkpoints(folder.path / "checkpoint"):
            save_what_there_is(folder, config, server, console)
            console.note(f"what is done is saved; {_what_helps(error, again)}")
        elif not resumed and not checkpoints(folder.path / "checkpoint"):
            # Refused before anything was done: the same run_dir is free for the next try.
            known = attempt.record.last_traceback if attempt is not None else ""
            if known not in str(error) and not config["verbose"]:
                console.note(known)  # errors.log goes with the folder
            shutil.rmtree(folder.path, ignore_errors=True)
            unlink_latest(folder.path)
        raise
    except Interrupted:
        summary = save_what_there_is(folder, config, server, console)
    finally:
        if attempt is not None:
            attempt.close(summary)
        console.close()
    before = attempt.encoded_before if attempt else 0.0
    console.summary(summary, folder.path, time.perf_counter() - began, again, before)
    if summary["status"] != "finished":
        raise Stopped(stopper.code)
    return summary


def _what_helps(error: FedPGPError, command: str) -> str:
    """Return what to do after this error: ``command`` resumes the run, where that can help."""
    if not isinstance(error, RepeatingError):
        return f"resume with: {command}"
    return f"{error.advice} resume with: {command}" if error.resumable else error.advice
