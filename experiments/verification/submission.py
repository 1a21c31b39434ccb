"""Checks a run folder that somebody else made, without running it again: is it whole, do its files
agree with each other, do its figures follow from its clients, was no round chosen by test data?

None of it proves that the run took place; it finds what was changed by hand. What was made up from
beginning to end is found by running it again (:mod:`experiments.verification.rerun`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.recorded_figures import whole_number
from experiments.reporting.commands import single_command
from experiments.reporting.runs import Run, number, read_run
from experiments.run_folder import EXTENDED
from experiments.verification.attack import attackers_by_settings, check_attack
from experiments.verification.budget import check_budget
from experiments.verification.checks import (
    FAILED,
    Check,
    NotChecked,
    alike,
    listed,
    made,
    refuse_differences,
    selection_of,
)
from experiments.verification.comparison import ROUNDING
from experiments.verification.drawn import refuse_other_draws
from experiments.verification.rerun import differing_settings
from experiments.verification.scoring import check_checkpoint, scored_again
from fedpgp import digests
from fedpgp.atomic_files import write_atomically
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import harmonic_mean, select, summarize
from fedpgp.evaluation.figures import ACCURACIES, MODELS
from fedpgp.evaluation.lifelong import lifelong_summary
from strategies.checkpoint import latest_checkpoint

FILES = ("config.yaml", "metrics.jsonl", "summary.json", "clients.csv", "partition.json")
"""What a submission has to have."""
DIGESTS = "digests.json"
"""In a submission: file -> SHA-256 of each of its other files."""
_OF_CLIENTS = (*ACCURACIES, "hm3", "hm2", "cm", "worst10")


def check_submission(folder: Path, rounding: float = ROUNDING) -> list[Check]:
    """Return the checks of a run folder, in the order in which they are made; where a file is
    missing or damaged, that one alone.

    Args:
        folder: of the run.
        rounding: points by which a figure may differ when the clients are scored again here.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return [Check("complete", FAILED, f"there is no {', '.join(missing)}")]
    try:
        run = read_run(folder)
        run.clients, run.partition  # noqa: B018  (a damaged file is an error)
    except FedPGPError as error:
        return [Check("complete", FAILED, str(error))]
    checks: Sequence[tuple[str, Callable[[Run], str]]] = (
        ("complete", _complete),
        ("digests", _digests),
        ("rounds", _rounds),
        ("no test selection", _selection),
        ("figures of the rounds", _figures),
        ("attack", check_attack),
        ("clients", _clients),
        ("figures of the clients", _recomputed),
        ("bytes", _bytes),
        ("command", _command),
        ("privacy budget", check_budget),
        ("checkpoint", check_checkpoint),
        ("scored again", lambda run: scored_again(run, rounding)),
    )
    return [made(name, check, run) for name, check in checks]


def write_digests(folder: Path) -> Path:
    """Write ``digests.json``, the SHA-256 of each file of a run folder, for a submission.

    Returns:
        its path.
    """
    path = folder / DIGESTS
    write_atomically(path, (json.dumps(_found_digests(folder), indent=1) + "\n").encode())
    return path


def _complete(run: Run) -> str:
    if run.status != "finished":
        raise FedPGPError(f"it is {run.status}, at round {run.rounds_done} of {run.rounds}")
    said = {"method", "dataset", "model", "protocol"}
    other = [f"{key} {run.summary.get(key)}" for key in sorted(said) if _named_otherwise(run, key)]
    for key in ("seed", "rounds"):
        if run.summary.get(key) != run.config.get(key):
            other.append(f"{key} {run.summary.get(key)}")
    if other:
        raise FedPGPError(f"summary.json says {', '.join(other)}, and config.yaml does not")
    return f"{len(FILES)} files, {run.rounds} rounds, finished"


def _named_otherwise(run: Run, key: str) -> bool:
    return str(run.summary.get(key)) != run.choice(key)


def _digests(run: Run) -> str:
    path = run.path / DIGESTS
    if not path.exists():
        raise NotChecked(
            f"there is no {DIGESTS}; python -m experiments.verify --digests FOLDER writes it"
        )
    recorded = json.loads(path.read_text(encoding="utf-8"), parse_int=whole_number)
    found = _found_digests(run.path)
    changed = [name for name in recorded if recorded[name] != found.get(name)]
    added = [name for name in found if name not in recorded]
    if changed or added:
        words = [f"changed or missing: {listed(changed)}"] if changed else []
        words += [f"added: {listed(added)}"] if added else []
        raise FedPGPError("; ".join(words))
    return f"{len(found)} files are those of {DIGESTS}"


def _found_digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): digests.digest(path.read_bytes())
        for path in files
        if path.name not in (DIGESTS, ".lock")
    }


def _rounds(run: Run) -> str:
    done = [row["round"] for row in run.trains]
    if done != list(range(1, len(done) + 1)):
        raise FedPGPError(f"metrics.jsonl lacks rounds: it has {listed(done)}")
    if not run.evals:
        raise FedPGPError("metrics.jsonl has no evaluation")
    last = run.evals[-1]["round"]
    if last != (done[-1] if done else 0):
        raise FedPGPError(f"the last evaluation is after round {last} of {len(done)}")
    evaluated = listed(row["round"] for row in run.evals)
    return f"{len(done)} rounds of training, evaluated after {evaluated}{_why_stopped(run)}"


def _why_stopped(run: Run) -> str:
    """Return why a training ended early, in words that follow others; empty where it did not.

    Raises:
        FedPGPError: nothing ended it; the checkpoint gives another reason.
        NotChecked: nobody but its summary says so.
    """
    done, said = len(run.trains), str(run.summary.get("stopped") or "")
    if not done or done == run.rounds:
        return ""
    if not said:
        raise FedPGPError(f"metrics.jsonl has {done} rounds of {run.rounds}")
    words = f"the training ended after round {done} of {run.rounds}: {said}"
    found = latest_checkpoint(run.path / "checkpoint", lambda text: None)
    if found is None:
        raise NotChecked(f"{words} (so its summary says, and there is no checkpoint)")
    if found[1].get("stopped", "") != said:
        raise FedPGPError(f"{words} (so its summary says, and its checkpoint does not)")
    return f"; {words}"


def _selection(run: Run) -> str:
    selection = selection_of(run)
    _, chosen = select(run.evals, selection)
    recorded = run.summary.get("selected_rounds", chosen)
    if recorded != chosen:
        raise FedPGPError(
            f"the figures are said to be of round {listed(recorded)}; protocol.selection="
            f"{selection} gives {listed(chosen)}"
        )
    if run.config["dataset"].get("evaluate_on", "test") != "test":
        raise FedPGPError("the figures are of validation images (dataset.evaluate_on), not of test")
    if earlier := run.config.get(EXTENDED):
        raise NotChecked(
            f"the run was given more rounds after it had finished ({listed(earlier)}, then "
            f"{run.rounds}): how many may have been chosen by its test figures"
        )
    return f"protocol.selection={selection}: round {listed(chosen)}{_why_stopped(run)}"


def _figures(run: Run) -> str:
    """summary.json is what the evaluations of metrics.jsonl give by the rule of selection."""
    accuracy, _ = select(run.evals, selection_of(run))
    expected = {"accuracy": accuracy, "lifelong": lifelong_summary(run.evals)}
    recorded = {"accuracy": run.summary["accuracy"], "lifelong": run.summary.get("lifelong")}
    refuse_differences(expected, recorded, "summary.json", "metrics.jsonl")
    return "summary.json is what metrics.jsonl gives"


def _clients(run: Run) -> str:
    """Each client of the partition was evaluated, or there is a reason why not; attackers do not
    count."""
    table = {row["id"]: row for row in run.partition["clients"]}
    evaluated = {row["id"] for row in run.clients}
    own = run.choice("partition") == "own" or run.choice("runtime") == "flower"
    if not own and run.summary.get("clients") != len(table):
        raise FedPGPError(
            f"summary.json has {run.summary.get('clients')} clients, partition.json {len(table)}"
        )
    if strangers := evaluated - set(table):
        raise FedPGPError(f"clients.csv has clients that partition.json lacks: {listed(strangers)}")
    attackers = set(attackers_by_settings(run))
    count, honest = run.evals[-1].get("clients"), evaluated - attackers
    if count is not None and len(honest) != count:  # an older run does not say
        among = f", {listed(attackers & evaluated)} of them attackers" if attackers else ""
        raise FedPGPError(
            f"the last evaluation was of {count} clients, clients.csv has {len(evaluated)}{among}"
        )
    left = set(run.config.get("left") or ())
    absent = set(table) - honest - attackers - left
    if absent and run.evaluates_all and not _silent(run, len(attackers)):
        raise FedPGPError(f"clients.csv lacks clients of partition.json: {listed(absent)}")
    for row in run.clients:
        for key in ("train_images", "test_images"):
            if table[row["id"]].get(key) is not None and row[key] != table[row["id"]][key]:
                raise FedPGPError(
                    f"client {row['id']} has {row[key]:g} {key} in clients.csv and "
                    f"{table[row['id']][key]} in partition.json"
                )
    refuse_other_draws(run, evaluated)
    if absent and run.evaluates_all:
        raise NotChecked(
            f"clients.csv lacks clients of partition.json: {listed(absent)}. They did not answer, "
            "metrics.jsonl says"
        )
    return f"{len(honest)} of {len(table) - len(attackers)} clients were evaluated"


def _silent(run: Run, attackers: int) -> int:
    """Return how many clients did not answer the last evaluation, by ``metrics.jsonl``."""
    answered, asked = run.partial.get(run.evals[-1]["round"], (0, 0))
    return max(0, asked - answered - attackers)


def _recomputed(run: Run) -> str:
    """The means of clients.csv, of those that do not attack, are those of the last evaluation."""
    rows: dict[int, dict] = {}
    attackers = attackers_by_settings(run)
    for row in run.clients:
        if row["id"] in attackers:
            continue
        flat = rows.setdefault(row["id"], {"id": row["id"], "domain": row["domain"] or None})
        for name in ACCURACIES:
            if not math.isnan(row[name]):
                flat[f"{row['model']}.{name}"] = row[name]
        for name, of in (("hm3", ("local", "base", "novel")), ("hm2", ("base", "novel"))):
            values = [None if math.isnan(row[figure]) else row[figure] for figure in of]
            if not alike(number(harmonic_mean(*values)), row[name]):
                raise FedPGPError(f"{name} of client {row['id']} is not that of its figures")
    blocks, last = summarize(list(rows.values())), run.evals[-1]
    names = (*_OF_CLIENTS, "std_clients")
    expected, recorded = (
        {
            model: {name: block.get(name) for name in names if name in block}
            for model in MODELS
            if (block := found.get(model))
        }
        for found in (blocks, last)
    )
    refuse_differences(expected, recorded, "metrics.jsonl", "clients.csv")
    return f"the means over {len(rows)} clients are those of the last evaluation"


def _bytes(run: Run) -> str:
    if run.summary.get("onboarding"):
        raise NotChecked("those of newcomers are in no round")
    for key in ("bytes_up", "bytes_down"):
        total = sum(number(row.get(key)) for row in (*run.trains, *run.evals))
        if not alike(total, number(run.summary.get(key))):
            raise FedPGPError(
                f"summary.json has {run.summary.get(key)} {key}, the rounds have {total:.0f}"
            )
    return "those of the rounds"


def _command(run: Run) -> str:
    command = single_command(run.config)
    if not command:
        raise NotChecked("config.yaml has none")
    if differing := differing_settings(run.config, command):
        said = [f"{key} is {old}, by its command {new}" for key, old, new in differing]
        raise FedPGPError(
            f"config.yaml does not have the settings of its command: {listed(said)} (or conf/ "
            f"has changed since its commit, {run.config.get('git_commit')})"
        )
    return command
