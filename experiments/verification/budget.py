"""Whether a privacy budget is the one that a run's settings give."""

from __future__ import annotations

import math
from collections.abc import Mapping

from experiments.reporting.runs import Run, number
from experiments.run_folder import ABOUT, EXTENDED, MEMBERS
from experiments.verification.checks import NotChecked
from fedpgp.errors import FedPGPError
from fedpgp.updates.base import RoundStart, State
from fedpgp.updates.configured import configured_steps

BUDGET = ("epsilon", "delta", "noise_multiplier")
"""Keys of ``privacy`` in ``summary.json``."""
CALIBRATED = 1e-5
"""Relative difference that is none: noise is calibrated to 1e-6."""


def budget_of(summary: Mapping) -> dict[str, float]:
    """Return a summary's budget: key -> value, NaN where there is none; empty where the summary
    claims nothing."""
    privacy = summary.get("privacy")
    return {key: number(privacy.get(key)) for key in BUDGET} if privacy else {}


def accounted(run: Run) -> dict[str, float]:
    """Return the budget of a run by its configuration and the accountant, as :func:`budget_of`.

    Raises:
        NotChecked: the folder does not have what it depends on.
    """
    privacy, claim = run.config.get("privacy") or {}, run.summary["privacy"]
    if privacy.get("name", "none") != "client":
        raise NotChecked("only that of privacy=client is computed again")
    if run.config.get(MEMBERS) or run.choice("partition") == "own":
        raise NotChecked("who could train is not in the folder")
    spent = claim.get("rounds")
    if not isinstance(spent, int) or isinstance(spent, bool) or spent < run.rounds_done:
        raise FedPGPError(f"it counts {spent} rounds, and the run has {run.rounds_done}")
    config = {key: value for key, value in run.config.items() if key not in ABOUT}
    if run.path.is_dir():
        table = run.partition["clients"]
        clients = len(table)
        trainers = sum(row.get("trains", True) and row["train_images"] > 0 for row in table)
    else:  # a kept run has no table: of its clients delta alone depends
        clients = trainers = run.summary["clients"]
        config["privacy"] = {**privacy, "delta": claim["delta"]}
    state: State = {}
    (step,) = [step for step in configured_steps(config) if step.combines]
    earlier = run.config.get(EXTENDED) or [config["rounds"]]  # noise is for the rounds of its start
    about = (earlier[0], clients, config["participation"], trainers, state, config["seed"])
    step.prepare(RoundStart(1, *about))
    found = step.privacy(state | {"spent": spent}, spent)
    return budget_of({"privacy": found})


def check_budget(run: Run) -> str:
    """Say whether the budget of ``summary.json`` is that of the accountant.

    Raises:
        FedPGPError: it is another.
        NotChecked: it cannot be computed again.
    """
    claimed = budget_of(run.summary)
    private = (run.config.get("privacy") or {}).get("name", "none") != "none"
    if not claimed and private:
        raise FedPGPError(f"summary.json has no budget, and privacy={run.choice('privacy')}")
    if not claimed:
        return "none is claimed"
    if not private and not run.config.get("updates") and not math.isnan(claimed["epsilon"]):
        raise FedPGPError("summary.json has an epsilon, and the run has privacy=none")
    for key, again in accounted(run).items():
        if not _same(again, claimed[key]):
            raise FedPGPError(f"{key} is {claimed[key]:.6g}, by its settings {again:.6g}")
    return "that of its settings, by the accountant"


def _same(one: float, other: float) -> bool:
    missing = math.isnan(one) and math.isnan(other)
    return missing or math.isclose(one, other, rel_tol=CALIBRATED)
