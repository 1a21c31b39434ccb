"""Makes a run again from what its folder says, and judges it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from experiments import runner
from experiments.override_checks import check_overrides
from experiments.provenance import PROVENANCE, provenance
from experiments.reporting.commands import overrides_of, single_command
from experiments.reporting.runs import Run, number, read_run
from experiments.resume_rules import FIXED, may_change_on_resume
from experiments.run_folder import ABOUT, MEMBERS, check_whole
from experiments.settings import composed, flatten
from experiments.verification.budget import budget_of, check_budget
from experiments.verification.checks import NotChecked, selection_of
from experiments.verification.comparison import (
    NOT_COMPARABLE,
    OUTSIDE,
    ROUNDING,
    Verdict,
    compare,
    different_costs,
    figures_of,
    reason_of,
    spread_of,
    status_of,
)
from experiments.verification.drawn import drew_each_round
from fedpgp.errors import MALFORMED, FedPGPError
from strategies.checkpoint import OTHER_WEIGHTS, latest_checkpoint
from strategies.sampling import MOST_EVALUATED

_PLACES = ("dataset.root", "runtime.cache_dir", "model.memory")
"""Settings that are folders of the machine of a run; where they are not here, the default is."""
_WHERE = ("device", "evaluate_every", "dataset.download", "dataset.memory")
"""Settings beside those of a resume that say how, not what."""


def verify(
    run: Run,
    name: str,
    folder: Path,
    *,
    others: Sequence[Run] = (),
    rounding: float = ROUNDING,
    inline: bool = False,
) -> Verdict:
    """Make a run again and say whether its figures hold.

    Args:
        run: as recorded.
        name: what it is called.
        folder: for the new run; it must not exist.
        others: runs among which those of its other seeds are looked for.
        rounding: points that a mean over the clients may differ by.
        inline: run it in this process, whatever runtime it had.
    """
    command = single_command(run.config)
    settings = differing_settings(run.config, command)
    about = {"command": command, "settings": settings}
    if why := why_not_comparable(run):
        if wrong := wrong_budget(run):
            return Verdict(name, OUTSIDE, f"its privacy budget: {wrong}", **about)
        return Verdict(name, NOT_COMPARABLE, why, **about)
    began = time.perf_counter()
    try:
        config = config_again(run, folder, inline=inline)
        with redirect_stdout(sys.stderr):  # standard output has the verdicts alone
            runner.start(config, command)
        again = read_run(folder)
    except FedPGPError as error:
        return Verdict(name, NOT_COMPARABLE, f"it cannot be run here: {error}", **about)
    spread = spread_of(run, others)
    figures, details = compare(run.summary, again.summary, spread, rounding)
    status = status_of(figures, details)
    environment = differing_environment(run.config, again.config)
    reason = reason_of(status, figures, spread, rounding, not environment)
    environment += different_costs(run.summary, again.summary)
    if status == OUTSIDE and _other_weights(run, again):
        status, reason = NOT_COMPARABLE, f"it cannot be made again here: {OTHER_WEIGHTS}"
    if status == OUTSIDE and settings:
        keys = ", ".join(key for key, _, _ in settings)
        reason += f"; settings are not those that its command makes: {keys}"
    about |= {"figures": figures, "details": details, "environment": environment}
    return Verdict(name, status, reason, seconds=time.perf_counter() - began, **about)


def _other_weights(run: Run, again: Run) -> bool:
    """Return whether the checkpoints of two runs say that their models had other weights; False
    where one has none."""
    found = []
    for each in (run, again):
        try:
            saved = latest_checkpoint(each.path / "checkpoint", lambda text: None)
        except FedPGPError:
            saved = None
        found.append(saved and saved[1].get("model_sha256"))
    return None not in found and found[0] != found[1]


def why_not_comparable(run: Run) -> str:
    """Return why a run cannot be made again; empty where it can."""
    summary, config = run.summary or {}, run.config
    if run.status != "finished":
        return f"it is {run.status}, at round {run.rounds_done} of {run.rounds}"
    if summary.get("no_figures"):
        return f"it has no figures: {summary['no_figures']}"
    if not figures_of(summary):
        return "it has no figures"
    if run.choice("runtime") == "flower" or run.choice("partition") == "own":
        return "its clients were nodes with images of their own"
    if config.get(MEMBERS):
        return "clients joined or left between its rounds"
    privacy = summary.get("privacy") or {}
    if privacy.get("noise_multiplier") and not privacy.get("seeded", True):
        return (
            "its noise is secret, so that no two runs are alike; with privacy.seeded_noise=true "
            "they are, and nothing is private"
        )
    if _asked_all(run):
        return (
            f"its evaluations asked all {summary['clients']} clients; evaluate_clients=null now "
            f"asks {MOST_EVALUATED} of more"
        )
    drawn = bool(run.evals) and "drawn_clients" in run.evals[-1]
    # Only then: a run that is kept has no clients.csv.
    if drawn and drew_each_round(run, {row["id"] for row in run.clients}):
        return "each of its evaluations drew other clients; now all are of the same"
    return ""


def wrong_budget(run: Run) -> str:
    """Return where the privacy budget of a run that cannot be made again is not that of its
    settings, by the accountant alone; empty where it is, or that is not known."""
    try:
        if run.status == "finished" and budget_of(run.summary):
            check_budget(run)
    except FedPGPError as error:
        return str(error)
    except (NotChecked, *MALFORMED):
        return ""
    return ""


def _asked_all(run: Run) -> bool:
    """Return whether a run of very many clients is so old that null meant all of them."""
    drawn = not run.evaluates_all or "standard_error" in run.summary
    many = number(run.summary.get("clients")) - len(run.config.get("left") or ()) > MOST_EVALUATED
    return many and not drawn and selection_of(run) != "validation"


def config_again(run: Run, folder: Path, *, inline: bool = False) -> dict:
    """Return the configuration that makes a run again: its own, in another folder. Settings
    that are newer than it have their defaults.

    Raises:
        FedPGPError: it is not the configuration of a run.
    """
    check_whole(run.path / "config.yaml", run.config)
    config = {key: value for key, value in run.config.items() if key not in ABOUT}
    for key in places_elsewhere(config):
        group, name = key.split(".")
        config[group] = {**config[group], name: None}
    if inline:
        kept = {key.split(".")[1]: flatten(config).get(key) for key in FIXED}
        fixed = {key: value for key, value in kept.items() if value is not None}
        config["runtime"] = {**composed(["runtime=inline"])["runtime"], **fixed}
    elif config["runtime"]["name"] == "inline":
        config["runtime"] = {**config["runtime"], "round_timeout": None}
    quiet = {"resume": None, "logger": {"name": "none"}, "verbose": False}
    return {**config, **quiet, "run_dir": str(folder)}


def places_elsewhere(config: Mapping) -> list[str]:
    """Return the settings that are folders of the machine of a run and are not here."""
    said = flatten(config)
    return [key for key in _PLACES if said.get(key) and not Path(str(said[key])).exists()]


def differing_settings(config: Mapping, command: str) -> list[tuple[str, Any, Any]]:
    """Return settings of a run that its command gives another value: ``(key, recorded, by its
    command)``. A setting that only one of them has is left out: it is older or newer than the run.
    """
    overrides = overrides_of(command)
    if overrides is None:
        return []
    try:
        check_overrides(overrides)
        told = flatten(composed(overrides))
    except FedPGPError:  # a setting that is gone
        return []
    own = flatten({key: value for key, value in config.items() if key not in ABOUT})
    if told.get("dtype") == "auto":  # the run has decided
        told["dtype"] = own.get("dtype")
    return [
        (key, value, told[key])
        for key, value in own.items()
        if key in told and told[key] != value and not may_change_on_resume(key)
        if key not in _WHERE and key not in _PLACES
    ]


def differing_environment(config: Mapping, other: Mapping | None = None) -> list[tuple]:
    """Return where the versions, the commit or the processor of a run are not those of another (or
    of this process): ``(what, recorded, there)``; what only one of them recorded counts."""
    here = provenance() if other is None else other
    one, two = (flatten({key: said.get(key) for key in PROVENANCE}) for said in (config, here))
    keys = dict.fromkeys([*one, *two])
    return [(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)]
