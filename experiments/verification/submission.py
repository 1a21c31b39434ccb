"""Checks a run folder that somebody else made, without running it again: is it whole, do its files
agree with each other, do its figures follow from its clients, was no round chosen by test data?

None of it proves that the run took place; it finds what was changed by hand. What was made up from
beginning to end is found by running it again (:mod:`experiments.verification.rerun`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.evaluate import evaluate
from experiments.recorded_figures import whole_number
from experiments.reporting.commands import single_command
from experiments.reporting.runs import Run, number, read_run
from experiments.resume_rules import may_change_on_resume
from experiments.run_folder import ABOUT, EXTENDED
from experiments.settings import flatten
from experiments.verification.comparison import ROUNDING
from experiments.verification.rerun import differing_settings
from fedpgp import digests
from fedpgp.atomic_files import write_atomically
from fedpgp.build import load_configured
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.evaluation import harmonic_mean, select, summarize
from fedpgp.evaluation.figures import ACCURACIES, MODELS
from fedpgp.evaluation.lifelong import lifelong_summary
from strategies.checkpoint import latest_checkpoint

OK, FAILED, UNKNOWN = "ok", "failed", "not checked"
FILES = ("config.yaml", "metrics.jsonl", "summary.json", "clients.csv", "partition.json")
"""What a submission has to have."""
DIGESTS = "digests.json"
"""In a submission: file -> SHA-256 of each of its other files."""
_SAME = 1e-9
"""Two figures computed of the same numbers differ by no more, relative to their size."""
_SHOWN = 4
_OF_CLIENTS = (*ACCURACIES, "hm3", "hm2", "cm", "worst10")


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, ``ok``, ``failed`` or ``not checked``, and why."""

    name: str
    status: str
    said: str


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
        ("clients", _clients),
        ("figures of the clients", _recomputed),
        ("bytes", _bytes),
        ("command", _command),
        ("checkpoint", _checkpoint),
        ("scored again", lambda run: _scored(run, rounding)),
    )
    return [_made(name, check, run) for name, check in checks]


def write_digests(folder: Path) -> Path:
    """Write ``digests.json``, the SHA-256 of each file of a run folder, for a submission.

    Returns:
        its path.
    """
    path = folder / DIGESTS
    write_atomically(path, (json.dumps(_found_digests(folder), indent=1) + "\n").encode())
    return path


class _NotChecked(Exception):
    """Nothing can be said, and why."""


def _made(name: str, check: Callable[[Run], str], run: Run) -> Check:
    """Return what a check says: its words, those of the FedPGPError that it fails with, or why it
    could not be made."""
    try:
        return Check(name, OK, check(run))
    except _NotChecked as why:
        return Check(name, UNKNOWN, str(why))
    except FedPGPError as error:
        return Check(name, FAILED, str(error))
    except MALFORMED as error:
        return Check(name, FAILED, f"its files do not have the form of a run's ({error!r})")


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
        raise _NotChecked(
            f"there is no {DIGESTS}; python -m experiments.verify --digests FOLDER writes it"
        )
    recorded = json.loads(path.read_text(encoding="utf-8"), parse_int=whole_number)
    found = _found_digests(run.path)
    changed = [name for name in recorded if recorded[name] != found.get(name)]
    added = [name for name in found if name not in recorded]
    if changed or added:
        words = [f"changed or missing: {_listed(changed)}"] if changed else []
        words += [f"added: {_listed(added)}"] if added else []
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
        raise FedPGPError(f"metrics.jsonl lacks rounds: it has {_listed(done)}")
    stopped = (run.summary or {}).get("stopped")
    if done and len(done) != run.rounds and not stopped:
        raise FedPGPError(f"metrics.jsonl has {len(done)} rounds of {run.rounds}")
    if not run.evals:
        raise FedPGPError("metrics.jsonl has no evaluation")
    last = run.evals[-1]["round"]
    if last != (done[-1] if done else 0):
        raise FedPGPError(f"the last evaluation is after round {last} of {len(done)}")
    return (
        f"{len(done)} rounds of training, evaluated after {_listed(r['round'] for r in run.evals)}"
    )


def _selection(run: Run) -> str:
    selection = _rule(run)
    _, chosen = select(run.evals, selection)
    recorded = run.summary.get("selected_rounds", chosen)
    if recorded != chosen:
        raise FedPGPError(
            f"the figures are said to be of round {_listed(recorded)}; protocol.selection="
            f"{selection} gives {_listed(chosen)}"
        )
    if run.config["dataset"].get("evaluate_on", "test") != "test":
        raise FedPGPError("the figures are of validation images (dataset.evaluate_on), not of test")
    if earlier := run.config.get(EXTENDED):
        raise _NotChecked(
            f"the run was given more rounds after it had finished ({_listed(earlier)}, then "
            f"{run.rounds}): how many may have been chosen by its test figures"
        )
    return f"protocol.selection={selection}: round {_listed(chosen)}"


def _figures(run: Run) -> str:
    """summary.json is what the evaluations of metrics.jsonl give by the rule of selection."""
    accuracy, _ = select(run.evals, _rule(run))
    expected = {"accuracy": accuracy, "lifelong": lifelong_summary(run.evals)}
    recorded = {"accuracy": run.summary["accuracy"], "lifelong": run.summary.get("lifelong")}
    _refuse_differences(expected, recorded, "summary.json", "metrics.jsonl")
    return "summary.json is what metrics.jsonl gives"


def _clients(run: Run) -> str:
    """Each client of the partition was evaluated, or there is a reason why not."""
    table = {row["id"]: row for row in run.partition["clients"]}
    evaluated = {row["id"] for row in run.clients}
    own = run.choice("partition") == "own" or run.choice("runtime") == "flower"
    if not own and run.summary.get("clients") != len(table):
        raise FedPGPError(
            f"summary.json has {run.summary.get('clients')} clients, partition.json {len(table)}"
        )
    if strangers := evaluated - set(table):
        raise FedPGPError(
            f"clients.csv has clients that partition.json lacks: {_listed(strangers)}"
        )
    count = run.evals[-1].get("clients")
    if count is not None and len(evaluated) != count:  # an older run does not say
        raise FedPGPError(
            f"the last evaluation was of {count} clients, clients.csv has {len(evaluated)}"
        )
    attackers = set((run.summary.get("attack") or {}).get("clients") or ())
    left = set(run.config.get("left") or ())
    absent = set(table) - evaluated - attackers - left
    if absent and run.evaluates_all and not run.partial:
        raise FedPGPError(f"clients.csv lacks clients of partition.json: {_listed(absent)}")
    for row in run.clients:
        for key in ("train_images", "test_images"):
            if table[row["id"]].get(key) is not None and row[key] != table[row["id"]][key]:
                raise FedPGPError(
                    f"client {row['id']} has {row[key]:g} {key} in clients.csv and "
                    f"{table[row['id']][key]} in partition.json"
                )
    return f"{len(evaluated)} of {len(table)} clients were evaluated"


def _recomputed(run: Run) -> str:
    """The means of clients.csv are those of the last evaluation."""
    rows: dict[int, dict] = {}
    for row in run.clients:
        flat = rows.setdefault(row["id"], {"id": row["id"], "domain": row["domain"] or None})
        for name in ACCURACIES:
            if not math.isnan(row[name]):
                flat[f"{row['model']}.{name}"] = row[name]
        for name, of in (("hm3", ("local", "base", "novel")), ("hm2", ("base", "novel"))):
            values = [None if math.isnan(row[figure]) else row[figure] for figure in of]
            if not _alike(number(harmonic_mean(*values)), row[name]):
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
    _refuse_differences(expected, recorded, "metrics.jsonl", "clients.csv")
    return f"the means over {len(rows)} clients are those of the last evaluation"


def _bytes(run: Run) -> str:
    if run.summary.get("onboarding"):
        raise _NotChecked("those of newcomers are in no round")
    for key in ("bytes_up", "bytes_down"):
        total = sum(number(row.get(key)) for row in (*run.trains, *run.evals))
        if not _alike(total, number(run.summary.get(key))):
            raise FedPGPError(
                f"summary.json has {run.summary.get(key)} {key}, the rounds have {total:.0f}"
            )
    return "those of the rounds"


def _command(run: Run) -> str:
    command = single_command(run.config)
    if not command:
        raise _NotChecked("config.yaml has none")
    if differing := differing_settings(run.config, command):
        said = [f"{key} is {old}, by its command {new}" for key, old, new in differing]
        raise FedPGPError(
            f"config.yaml does not have the settings of its command: {_listed(said)} (or conf/ "
            f"has changed since its commit, {run.config.get('git_commit')})"
        )
    return command


def _checkpoint(run: Run) -> str:
    """The checkpoint is intact and of this configuration."""
    found = latest_checkpoint(run.path / "checkpoint", lambda text: None)
    if found is None:
        raise _NotChecked("there is none")
    _, info = found
    own = {key: value for key, value in run.config.items() if key not in ABOUT}
    said, there = flatten(own), flatten(info.get("config", {}))
    other = [
        f"{key} is {said.get(key)}, in the checkpoint {there.get(key)}"
        for key in dict.fromkeys([*said, *there])
        if said.get(key) != there.get(key) and not may_change_on_resume(key)
    ]
    if other:
        raise FedPGPError(f"config.yaml is not that of the checkpoint: {_listed(other)}")
    table = {row["id"]: row for row in info.get("table", ())}
    if table and table != {row["id"]: row for row in run.partition["clients"]}:
        raise FedPGPError("partition.json is not that of the checkpoint")
    done = len(run.trains) or info["round"]
    if info["round"] != done:
        raise FedPGPError(f"it is of round {info['round']}, the run has {done}")
    return f"intact, of round {info['round']}, of this configuration and partition"


def _scored(run: Run, rounding: float) -> str:
    """The clients' models, as their files hold them, have the figures of the last evaluation."""
    if not list((run.path / "checkpoint").glob("round_*.safetensors")):
        raise _NotChecked("there is no checkpoint: the clients' models are not there to be scored")
    if (run.summary.get("privacy") or {}).get("kept_by") or run.choice("runtime") == "flower":
        raise _NotChecked("what its clients learned is on their own machines")
    if _rule(run) != "last" or run.summary.get("lifelong"):
        raise _NotChecked("its figures are not those of its last round alone")
    if not run.evaluates_all:
        raise _NotChecked("not all clients were evaluated (evaluate_clients)")
    try:
        load_configured(run.config)
    except FedPGPError as error:
        raise _NotChecked(f"its data are not here: {error}") from error
    found = evaluate(run.path)
    if found["round"] != run.evals[-1]["round"]:
        raise _NotChecked(f"the checkpoint is of round {found['round']}")
    most, where = 0.0, ""
    for model in MODELS:
        here, there = (found["accuracy"].get(model) or {}), (run.evals[-1].get(model) or {})
        for name in ACCURACIES:
            apart = abs(number(here.get(name)) - number(there.get(name)))
            if apart > most:
                most, where = apart, f"{model}.{name}"
    if most > rounding:
        raise FedPGPError(f"the clients' models give another {where}, {most:.2f} points away")
    return "the clients' models have these figures" + (
        f", within {most:.2g} points" if most else ""
    )


def _rule(run: Run) -> str:
    return run.config["protocol"].get("selection", "last")


def _refuse_differences(expected: Mapping, recorded: Mapping, where: str, source: str) -> None:
    """Raise FedPGPError where two nested blocks of figures are not the same numbers."""
    one, two = flatten(_no_lists(expected)), flatten(_no_lists(recorded))
    for key in dict.fromkeys([*one, *two]):
        first, second = number(one.get(key)), number(two.get(key))
        if not _alike(first, second):
            raise FedPGPError(
                f"{key} is {_written(second)} in {where}, and {_written(first)} by {source}"
            )


def _no_lists(value: object) -> object:
    """Return a block with its matrices as mappings."""
    if isinstance(value, Mapping):
        return {key: _no_lists(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return {str(index): _no_lists(entry) for index, entry in enumerate(value)}
    return value


def _alike(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return abs(one - other) <= _SAME * max(1.0, abs(one))


def _written(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.4f}"


def _listed(values) -> str:
    words = [str(value) for value in (sorted(values) if isinstance(values, set) else values)]
    if len(words) > 2 * _SHOWN:
        words = [*words[:_SHOWN], "…", *words[-_SHOWN:]]
    return ", ".join(words) if words else "none"
