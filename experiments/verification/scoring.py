"""What the tensors of a submission say: its checkpoint, and its clients' models, scored again."""

import math
from collections.abc import Iterator, Mapping

from experiments.evaluate import evaluate
from experiments.reporting.runs import Run, number
from experiments.resume_rules import may_change_on_resume
from experiments.run_folder import ABOUT
from experiments.settings import flatten
from experiments.verification.checks import NotChecked, listed, selection_of
from experiments.verification.comparison import few
from experiments.verification.rerun import places_elsewhere
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import FIGURES, GROUPED, MODELS
from strategies.checkpoint import Unfit, latest_checkpoint

_PARTS = 3.0
"""How many times the rounding of a mean over all clients one of a domain or data set may have."""


def check_checkpoint(run: Run) -> str:
    """Say whether the checkpoint is intact and of this configuration.

    Raises:
        FedPGPError: it is not.
        NotChecked: there is none.
    """
    found = latest_checkpoint(run.path / "checkpoint", lambda text: None)
    if found is None:
        raise NotChecked("there is none")
    _, info = found
    own = {key: value for key, value in run.config.items() if key not in ABOUT}
    said, there = flatten(own), flatten(info.get("config", {}))
    other = [
        f"{key} is {said.get(key)}, in the checkpoint {there.get(key)}"
        for key in dict.fromkeys([*said, *there])
        if said.get(key) != there.get(key) and not may_change_on_resume(key)
    ]
    if other:
        raise FedPGPError(f"config.yaml is not that of the checkpoint: {listed(other)}")
    table = {row["id"]: row for row in info.get("table", ())}
    if table and table != {row["id"]: row for row in run.partition["clients"]}:
        raise FedPGPError("partition.json is not that of the checkpoint")
    done = len(run.trains) or info["round"]
    if info["round"] != done:
        raise FedPGPError(f"it is of round {info['round']}, the run has {done}")
    return f"intact, of round {info['round']}, of this configuration and partition"


def scored_again(run: Run, rounding: float) -> str:
    """Say whether the clients' models, as their files hold them, have the figures of the last
    evaluation.

    Args:
        run: as recorded.
        rounding: points that a mean over the clients may differ by.

    Raises:
        FedPGPError: they have not, or the checkpoint is none of this run.
        NotChecked: models, data or weights are not here.
    """
    if not list((run.path / "checkpoint").glob("round_*.safetensors")):
        raise NotChecked("there is no checkpoint: the clients' models are not there to be scored")
    if (run.summary.get("privacy") or {}).get("kept_by") or run.choice("runtime") == "flower":
        raise NotChecked("what its clients learned is on their own machines")
    if selection_of(run) != "last" or run.summary.get("lifelong"):
        raise NotChecked("its figures are not those of its last round alone")
    if not run.evaluates_all:
        raise NotChecked("not all clients were evaluated (evaluate_clients)")
    elsewhere = [key for key in places_elsewhere(run.config) if not key.startswith("model.")]
    try:
        found = evaluate(run.path, ["device=auto", *(f"{key}=null" for key in elsewhere)])
    except Unfit:
        raise
    except FedPGPError as error:  # whoever has something to hide leaves the tensors out
        raise NotChecked(f"it cannot be scored here: {error}") from error
    if found["round"] != run.evals[-1]["round"]:
        raise NotChecked(f"the checkpoint is of round {found['round']}")
    most = most_apart(run.evals[-1], found["accuracy"], rounding)
    return "the clients' models have these figures" + (
        f", within {most:.2g} points" if most else ""
    )


def most_apart(recorded: Mapping, again: Mapping, rounding: float) -> float:
    """Return by how many points two evaluations differ at most, of the figures that the first has;
    a figure that is newer than it stays out.

    Args:
        recorded, again: model -> block.
        rounding: points that a mean over the clients may differ by.

    Raises:
        FedPGPError: one differs by more, or only one of them has it.
    """
    most = 0.0
    for name, one, two, allowed in _side_by_side(recorded, again, rounding):
        if math.isnan(one) != math.isnan(two):
            known = "no" if math.isnan(one) else "a"
            raise FedPGPError(f"metrics.jsonl has {known} {name}, unlike the clients' models")
        apart = abs(one - two)
        if apart > allowed:
            raise FedPGPError(f"the clients' models give another {name}, {apart:.2f} points away")
        most = max(most, apart)  # NaN, where both are missing, is not larger
    return most


def _side_by_side(
    recorded: Mapping, again: Mapping, rounding: float
) -> Iterator[tuple[str, float, float, float]]:
    """Yield ``(name, recorded, again, by how much they may differ)``."""
    for model in MODELS:
        there, here = recorded.get(model) or {}, again.get(model) or {}
        for name in (*FIGURES, *GROUPED):
            if name in there:
                one, two = flatten({name: there[name]}), flatten({name: here.get(name)})
                for key in dict.fromkeys([*one, *two]):
                    times = _PARTS if name in GROUPED else few(f"{model}.{name}")
                    values = number(one.get(key)), number(two.get(key))
                    yield f"{model}.{key}", *values, rounding * times
