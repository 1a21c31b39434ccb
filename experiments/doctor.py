"""Tells what this machine can do: device, precision, versions, disk, weights, data sets, and how
long the paper's run takes.

python -m experiments.doctor
python -m experiments.doctor --experiment paper_base2novel     exit code 1: something it needs is
                                                               missing
python -m experiments.doctor --no-run --json found.json        without measuring a step
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.command import command
from experiments.overrides import user_path
from experiments.settings import CONF, choices, composed
from fedpgp.atomic_files import check_target, write_atomically
from fedpgp.errors import FedPGPError, unknown
from fedpgp.plain_text import written_out
from fedpgp.quiet_log import errors_alone

MISSING = 1
"""Exit status when something that the asked experiment needs is missing."""
USUAL = ("recipe=paper", "dataset=oxford_pets")
"""The run whose time is told where no experiment is asked for."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 where the asked experiment lacks something, 2
    for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.doctor",
        description="Tells what this machine can do, has, and lacks.",
    )
    add = parser.add_argument
    add("--experiment", metavar="NAME", help="of conf/experiment: what it needs, and how long")
    add("--no-run", action="store_true", help="do not measure a step of the run")
    add("--json", type=user_path, metavar="FILE", help="write what was found there, too")
    options = parser.parse_args(arguments)
    if options.json:
        check_target(options.json)
    with errors_alone():  # open_clip warns of random weights, which are meant
        found = checkup(options.experiment, measure=not options.no_run)
    from experiments.checkup.page import page

    print(page(found), flush=True)
    if options.json:
        write_atomically(options.json, (json.dumps(found, indent=1) + "\n").encode())
        print(f"\nwrote {written_out(options.json)}")
    return MISSING if found["missing"] else 0


def checkup(experiment: str | None, *, measure: bool) -> dict:
    """Return what this machine can do, has, and lacks.

    Args:
        experiment: of conf/experiment; None asks for none.
        measure: a step of its run, or of the paper's.

    Raises:
        FedPGPError: no such experiment.
    """
    from experiments.checkup import duration, holdings, machine  # torch and open_clip: seconds
    from experiments.checkup.public_data import FACTS
    from fedpgp.clip.loading import SHORT_NAMES

    sweep = _sweep(experiment)
    cells = [_cell(experiment, "dataset", name) for name in sweep.get("dataset", [None])]
    first = _to_measure(experiment, sweep)
    memory, accelerators = machine.memory(), machine.devices()
    data = holdings.data_sets(list(FACTS))
    needed = dict.fromkeys(name for cell in cells for name in holdings.data_of(cell))
    lacking = [each["dataset"] for each in data if not each["found"] and each["dataset"] in needed]
    models = {cell["model"]["name"]: holdings.weights_of(cell) for cell in cells}
    lacking += [f"weights of {e['model']}" for e in models.values() if e and not e["found"]]
    run = None
    if measure and duration.can_be_estimated(first):
        size = math.prod(len(values) for values in sweep.values())
        run = duration.estimate(first, size, memory, accelerators)
    return {
        "system": machine.system(),
        "processor": machine.processor(),
        "memory": memory,
        "devices": accelerators,
        "versions": machine.versions(),
        "extras": machine.extras(),
        "folders": machine.folders(holdings.hub_folder()),
        "weights": holdings.weights(list(SHORT_NAMES)),
        "data_sets": data,
        "run": run,
        "experiment": experiment,
        "missing": lacking if experiment else [],
    }


def _sweep(experiment: str | None) -> dict[str, list[str]]:
    """Return the values that an experiment sweeps over, by key."""
    if experiment is None:
        return {}
    if experiment not in choices()["experiment"]:
        raise FedPGPError(unknown("experiment", experiment, choices()["experiment"]))
    path: Path = CONF / "experiment" / f"{experiment}.yaml"
    params = (yaml.safe_load(path.read_text()) or {}).get("hydra", {}).get("sweeper", {})
    return {key: str(values).split(",") for key, values in params.get("params", {}).items()}


def _cell(experiment: str | None, key: str, value: str | None) -> dict:
    """Return the configuration of an experiment with one value of its sweep."""
    words = list(USUAL) if experiment is None else [f"experiment={experiment}"]
    return composed([*words, *([] if value is None else [f"{key}={value}"])])


def _to_measure(experiment: str | None, sweep: dict[str, list[str]]) -> dict:
    """Return the configuration of an experiment's first cell, of FedPGP where it is among its
    methods."""
    if experiment is None:
        return composed(USUAL)
    chosen = {key: values[0] for key, values in sweep.items()}
    if "fedpgp" in sweep.get("method", ()):
        chosen["method"] = "fedpgp"
    words = [f"{key}={value}" for key, value in chosen.items()]
    return composed([f"experiment={experiment}", *words])


if __name__ == "__main__":
    sys.exit(main())
