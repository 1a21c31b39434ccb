"""A finished run that is given more rounds, and a new run that starts from the prompts of
another."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import yaml

from experiments.overrides import resume_command, typed
from experiments.run_folder import EXTENDED, RunFolder
from fedpgp.atomic_files import write_atomically
from fedpgp.build import configured_method
from fedpgp.config import Config, MethodSection
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.methods.base import Method
from fedpgp.plain_text import written_out
from fedpgp.prefixes import strip_prefix
from strategies.checkpoint import latest_checkpoint, same_model


def finished_already(folder: RunFolder, rounds: int) -> dict | None:
    """The summary of a run that has nothing left to do; None of any other.

    Args:
        folder: of the run.
        rounds: that it is to have.
    """
    summary = folder.summary()
    return (
        summary
        if summary.get("status") == "finished" and summary.get("rounds", 0) >= rounds
        else None
    )


def check_more_rounds(config: Mapping, done: int, asked: int) -> None:
    """Refuses to give a run another number of rounds where it would not be the run it
    had been with that number.

    Args:
        config: of the run.
        done: the rounds it was started with.
        asked: the rounds it is to have.

    Raises:
        FedPGPError: no number of rounds, fewer rounds, or a setting whose course depends on how
            many there are.
    """
    Config.check(rounds=asked)
    if asked < done:
        raise FedPGPError(
            f"rounds={asked}: this run was started with {done}; a resumed run can only have more"
        )
    method, settings = configured_method(MethodSection.of(config["method"]))
    why = None
    if config["training"]["schedule"] == "cosine":
        why = "training.schedule=cosine lets the rate fall over all rounds"
    elif method.depends_on_rounds(settings):
        why = f"method={method.name} weights each round by its place among all"
    elif config.get("privacy", {}).get("epsilon") is not None:
        why = "privacy.epsilon is of all rounds together, and the noise was made for them"
    if asked > done and why:
        raise FedPGPError(
            f"rounds={asked}: {why}, so that a run of {asked} would have been another from its "
            f"first round than this one of {done}; start a new one{from_its_prompts(config)}"
        )


def say_finished(path: Path, rounds: int, command: str, config: Mapping | None) -> str:
    """What is said of a run that has nothing left to do.

    Args:
        path: its folder.
        rounds: that it has.
        command: that started it.
        config: of the run; None of one that consists of several, and so has no prompts of its own.
    """
    lines = [
        f"finished already: {written_out(path)} ({rounds} round{'s' * (rounds != 1)})",
        f"more rounds: {resume_command(command, path, rounds=2 * rounds or 1)}",
    ]
    if config is not None and from_its_prompts(config):
        lines.append(f"another run from its prompts: {resume_command(command, path, 'init_from')}")
    return "\n".join(lines)


def why_no_start(config: Mapping) -> str:
    """Why no new run can start from the shared tensors of a run, in words that follow its method's
    name; empty: one can.

    Args:
        config: of the run.

    Raises:
        FedPGPError: its method's class cannot be had.
    """
    method, _ = configured_method(MethodSection.of(config["method"]))
    if method.init_shared is Method.init_shared:
        return "shares nothing"
    if method.no_shared_start:
        return method.no_shared_start
    if beside := method.model_in_server_state:
        return (
            f"keeps a part of its model in the server state, {beside}, which a new run does not "
            "take; without it another model would start"
        )
    return ""


def _why_not(run: Path, config: Mapping) -> str:
    try:
        return why_no_start(config)
    except FedPGPError as error:
        raise FedPGPError(
            f"init_from={run}: whether that run's model is all in its shared tensors is not known "
            f"without its method's class: {error}"
        ) from error


def from_its_prompts(config: Mapping, run: Path | str = "RUN") -> str:
    """Words behind "a new run": how it starts from the prompts of one; empty where none can.

    Args:
        config: of that one.
        run: its folder.
    """
    try:
        why = why_no_start(config)
    except FedPGPError:  # a class of one's own that is not here
        return ""
    return "" if why else f" (from its prompts: {typed('init_from', run)})"


def begin_more_rounds(folder: RunFolder, rounds: int) -> None:
    """Records that a run is given more rounds: until they are done, it is not finished."""
    if RunFolder.open(folder.path)[1]["rounds"] < rounds:
        record_rounds(folder.path / "config.yaml", rounds)
    if summary := folder.summary():
        folder.json("summary.json", {**summary, "status": "interrupted"})


def record_rounds(file: Path, rounds: int) -> None:
    """Writes the new number of rounds into the configuration of a run (or of several parts), and
    the one before into its list of them."""
    config = yaml.safe_load(file.read_text())
    config[EXTENDED] = [*config.get(EXTENDED, []), config["rounds"]]
    config["rounds"] = rounds
    write_atomically(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())


def prompts_of(
    run: Path, federation: Federation, warn: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """The shared tensors that a new run starts with, from the newest checkpoint of another.

    Args:
        run: the other run's folder.
        federation: of the new run.
        warn: told what a person may not expect.

    Returns:
        name -> tensor, in the new run's precision.

    Raises:
        FedPGPError: no run, no checkpoint, tensors that do not fit, or that are only a part of the
            other run's model.
    """
    _, theirs = RunFolder.open(run)
    saved = latest_checkpoint(run / "checkpoint", warn)
    if saved is None:
        raise FedPGPError(f"init_from={run}: this run saved nothing yet")
    tensors, info = saved
    found, ours = strip_prefix("shared/", tensors), federation.models.initial_shared()
    method, other = federation.method.name, theirs["method"]["name"]
    if not ours:
        raise FedPGPError(
            f"init_from={run}: method={method} has no global prompt that could start from another"
        )
    if why := federation.method.no_shared_start:
        raise FedPGPError(f"init_from={run}: method={method} {why}")
    if strip_prefix("memory/", tensors) and (why := _why_not(run, theirs)):
        raise FedPGPError(f"init_from={run}: method={other} of that run {why}")
    if missing := [name for name in ours if name not in found]:
        has = f"has {', '.join(found)}" if found else "has none"
        raise FedPGPError(
            f"init_from={run}: method={method} starts from {', '.join(missing)}, and that run "
            f"(method={other}) {has}"
        )
    for name, tensor in ours.items():
        if found[name].shape != tensor.shape:
            raise FedPGPError(
                f"init_from={run}: {name} has the shape {found[name].shape} there and "
                f"{tensor.shape} here; n_ctx, model and the method's own sizes have to be alike"
            )
    if left := [name for name in found if name not in ours]:
        warn(
            f"init_from={run}: method={method} has no place for {', '.join(left)}; taken: "
            f"{', '.join(ours)}"
        )
    if not same_model(info, federation.method.task.clip.fingerprint):
        warn(f"init_from={run}: its prompts were trained with other weights of the model")
    return {name: found[name].astype(tensor.dtype) for name, tensor in ours.items()}
