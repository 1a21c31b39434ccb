"""One experiment, or a sweep: ``python -m experiments.run [group=choice ...] [key=value ...]``; ``--help`` explains."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.settings import CONF, changed_on_resume, check_overrides, flatten, parse, register_resolvers
from fedpgp.errors import FedPGPError

BAD_INPUT = 2
"""Exit status when a person has to mend something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 130 and 143 for Ctrl-C and SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = "python -m experiments.run " + shlex.join(arguments)
    failures: list[int] = []

    def task(config: DictConfig) -> None:
        try:
            _job(OmegaConf.to_container(config, resolve=True), command)
        except FedPGPError as error:
            failures.append(_complain(error))

    register_resolvers()
    try:
        check_overrides(get_args_parser().parse_args(arguments).overrides)
    except FedPGPError as error:
        return _complain(error)
    sys.argv = ["python -m experiments.run", *arguments]
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    return max(failures, default=0)


def _job(config: dict, command: str) -> None:
    """One run: new, gone on with, or (in a sweep) one that is finished already."""
    from experiments.runner import Stopped, resume, start  # torch and Flower: not needed for --help

    context = HydraConfig.get()
    overrides = [o for o in context.overrides.task if not o.startswith("resume=")]
    sweep = context.mode == RunMode.MULTIRUN
    try:
        if sweep:
            _one_of_many(config, command, Path(context.sweep.dir), overrides)
        elif config["resume"]:
            folder = Path(config["resume"])
            resume(folder, changes_on_resume(config, overrides, folder))
        else:
            start(config, command)
    except Stopped as stopped:
        sys.exit(stopped.code)


def _one_of_many(config: dict, command: str, folder: Path, overrides: list[str]) -> None:
    from experiments.folder import job_name
    from experiments.runner import resume, start

    path = folder / job_name(overrides)
    print(f"\n{path.name}")
    if not (path / "config.yaml").exists():
        start({**config, "run_dir": str(path)}, command)
    elif not config["resume"]:
        raise FedPGPError(f"{path} exists already; go on with the sweep by resume={folder}, or choose another run_dir")
    elif _finished(path):
        print(f"is finished: {path}")
    else:
        resume(path, changes_on_resume(config, overrides, path))


def changes_on_resume(config: dict, overrides: Sequence[str], folder: Path) -> dict:
    """Settings of this command line that a resumed run may take over; others are refused."""
    from experiments.folder import RunFolder

    _, stored = RunFolder.open(folder)
    if differing := changed_on_resume(overrides, config, stored):
        raise FedPGPError(
            f"{folder} was started with another configuration: {', '.join(differing)} differ; "
            "leave them out, or start a new run"
        )
    changes: dict = {}
    for override in parse(overrides):  # a choice of a group brings its settings; a key only itself
        top, *inner = override.key_or_group.split(".")
        if inner:
            changes.setdefault(top, dict(stored[top]))[".".join(inner)] = flatten(config).get(override.key_or_group)
        elif top in config:
            changes[top] = config[top]
    return changes


def _finished(path: Path) -> bool:
    import json

    try:
        return json.loads((path / "summary.json").read_text())["status"] == "finished"
    except (OSError, ValueError, KeyError):
        return False


def _complain(error: FedPGPError) -> int:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
