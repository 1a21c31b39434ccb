"""Protocols of several runs (``leave_one_domain_out``): a run folder for each part,
and one report of all."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from experiments import report, runner
from experiments.finished_run import finished_already, record_rounds, say_finished
from experiments.latest_link import link_latest
from experiments.naming import unique_name
from experiments.run_checks import choose_dtype
from experiments.run_folder import ABOUT, RunFolder, check_whole, default_folder
from fedpgp.atomic_files import write_atomically
from fedpgp.build import check_config, load_configured
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.evaluation import mean_accuracy
from fedpgp.plain_text import written_out
from fedpgp.protocols import make_protocol

WHOLE = "parts.yaml"
"""The configuration of all parts together, in the folder that holds theirs."""
PARTS = "parts"
"""In it: the values that have a part each."""


def start(config: dict, command: str) -> None:
    """Run a new experiment, or each of its parts in turn.

    Raises:
        FedPGPError: anything a person can mend; of the parts, after all were tried.
        Stopped: the person asked to stop.
    """
    check_config(config)
    protocol = make_protocol(config["protocol"])
    if protocol.parts is None or config["protocol"][protocol.parts] is not None:
        runner.start(config, command)
        return
    values = list(protocol.values(load_configured(config)))  # refused before a folder is made
    path = (
        Path(config["run_dir"]) if config["run_dir"] else default_folder(config["experiment_name"])
    )
    RunFolder(path).refuse_if_used()
    config = choose_dtype(config)
    about = {"run_dir": str(path), "command": command, PARTS: values}
    text = yaml.safe_dump({**config, **about}, sort_keys=False, allow_unicode=True)
    write_atomically(path / WHOLE, text.encode())
    if not config["run_dir"]:
        link_latest(path)
    _all(path, {})


def resume(path: Path, changes: Mapping) -> None:
    """Resume a run, or those parts that are not finished.

    Raises:
        As :func:`start`.
    """
    if (path / WHOLE).exists():
        _all(path, changes)
    else:
        runner.resume(path, changes)


def started(path: Path) -> bool:
    """Return whether there is a run, or parts of one, in a folder."""
    return (path / "config.yaml").exists() or (path / WHOLE).exists()


def finished(path: Path, rounds: int) -> bool:
    """Return whether the run in a folder, or the last of its parts, has all its rounds."""
    return finished_already(RunFolder(path), rounds) is not None


def stored(path: Path) -> dict:
    """Return the configuration that a folder's run, or all its parts, were started with.

    Raises:
        FedPGPError: it is no run's folder.
    """
    if not (path / WHOLE).exists():
        return RunFolder.open(path)[1]
    try:
        config = yaml.safe_load((path / WHOLE).read_text())
    except (OSError, yaml.YAMLError, *MALFORMED) as error:
        raise FedPGPError(f"{path / WHOLE} cannot be read: {str(error).splitlines()[0]}") from error
    check_whole(path / WHOLE, config)
    return {key: value for key, value in config.items() if key not in (*ABOUT, PARTS)}


def _part(path: Path, option: str, value: str) -> Path:
    """Return a part's folder; a value that is no name of a file gets a digest."""
    return path / unique_name(f"{option}={value}", r"[/\0]+")


def _all(path: Path, changes: Mapping) -> None:
    whole = stored(path)
    rounds = changes.get("rounds", whole["rounds"])
    about = yaml.safe_load((path / WHOLE).read_text())  # whole, or it was refused
    option = make_protocol(whole["protocol"]).parts
    values = list(make_protocol(whole["protocol"]).values(load_configured(whole)))
    if values != about.get(PARTS, values):
        raise FedPGPError(
            f"the data of {path} have changed since it was started: its parts were "
            f"{', '.join(about[PARTS])}, now they would be {', '.join(values)}. Restore them, or "
            "start a new run"
        )
    if all(
        finished(folder, rounds)
        for folder in (path, *(_part(path, option, value) for value in values))
    ):
        print(say_finished(path, rounds, about.get("command", ""), None))
        return
    if rounds > whole["rounds"]:
        record_rounds(path / WHOLE, rounds)
    failures = []
    for value in values:
        part = _part(path, option, value)
        print(f"\n{written_out(part.name)}")
        try:
            if finished(part, rounds):
                print(f"is finished: {written_out(part)}")
            elif started(part):
                runner.resume(part, {**changes, "rounds": rounds})
            else:
                config = {
                    **whole,
                    **changes,
                    "protocol": {**whole["protocol"], option: value},
                    "run_dir": str(part),
                }
                runner.start(config, about.get("command", ""))
        except FedPGPError as error:
            failures.append(f"{part.name}: {error}")
    if failures:
        raise FedPGPError(f"{len(failures)} of {len(values)} parts failed: {'; '.join(failures)}")
    parts = [RunFolder(_part(path, option, value)).summary() for value in values]
    accuracy = mean_accuracy([part["accuracy"] for part in parts])
    for model, block in accuracy.items():
        if (
            block is not None
        ):  # what a domain's own clients reached in the other runs is no part of the mean
            unseen = [part["accuracy"][model]["unseen"] for part in parts]
            block["domains"] = dict(zip(values, unseen, strict=True))
    about = (
        "method",
        "dataset",
        "model",
        "partition",
        "protocol",
        "seed",
        "rounds",
        "clients",
        "status",
        "one_prompt",
    )
    summary = {**{key: parts[0][key] for key in about if key in parts[0]}, "accuracy": accuracy}
    RunFolder(path).json("summary.json", summary)
    print(f"\nall {len(values)} parts")
    report.main([str(path), "--models", ",".join(summary["accuracy"])])
    report.main([str(path), "--models", ",".join(summary["accuracy"]), "--format", "html"])
