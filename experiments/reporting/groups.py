"""Runs that differ only in their seed, together, and the settings that tell such groups apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from experiments.reporting.formatting import format_setting
from experiments.reporting.runs import Run
from experiments.resume_rules import FIXED
from experiments.settings import flatten
from fedpgp.config import Config

#: Settings that say where and how a run was carried out, not what it computed.
_NOT_A_DIFFERENCE = {
    *("seed", "run_dir", "resume", "verbose", "device", "experiment_name", "evaluate_every"),
    *("dataset.download", "versions", "git_commit", "machine", "command", "extended", "logger"),
}
#: Settings whose value "none", or an empty list, is that of a run from before there was such a one.
_NONE = ("attack.name", "privacy.name", "updates", "strategy.wrap", "left")
#: Rows are compared with each other (best, second, significance) where all of these are the same.
_TASK = ("dataset", "model", "partition", "protocol", "clients", "shots")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, by seed."""

    labels: dict[str, str]
    runs: dict[Any, Run]
    task: tuple


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups finished runs, and notes on what was left out (a seed that was run twice
    counts once, the newest).

    A setting is a label where groups differ in it; one inside a choice (`method.rank`) where
    groups with the same choice differ in it, so that a method is not told from another by settings
    that only one of them has.
    """
    by_setup: dict[tuple, dict[Any, Run]] = defaultdict(dict)
    settings: dict[tuple, dict[str, Any]] = {}
    notes = []
    for run in sorted(runs, key=_age):
        # null is a setting that is not made, as in a run from before there was such a setting
        differing = {
            key: format_setting(value)
            for key, value in _settings(run).items()
            if _is_difference(key) and value is not None
        }
        setup = tuple(sorted(differing.items()))
        settings[setup] = differing
        if run.seed in by_setup[setup]:
            notes.append(
                f"seed {run.seed} was run more than once with the same settings; {run.path} counts"
            )
        by_setup[setup][run.seed] = run

    keys = [
        key
        for key in _label_order(settings.values())
        if _distinguishes(key, list(settings.values()))
    ]
    groups = []
    for setup, by_seed in by_setup.items():
        flat = settings[setup]
        labels = {"method": flat.get("method.name", "?")}
        labels |= {short_label(key): flat.get(key, "–") for key in keys if key != "method.name"}
        task = tuple((key, value) for key, value in setup if key.split(".")[0] in _TASK)
        groups.append(
            Group(
                labels, dict(sorted(by_seed.items(), key=lambda item: _natural(str(item[0])))), task
            )
        )
    first_of_task: dict[tuple, int] = {}
    for index, group in enumerate(sorted(groups, key=lambda g: _natural(str(g.task)))):
        first_of_task.setdefault(group.task, index)
    groups.sort(
        key=lambda g: (first_of_task[g.task], [_natural(value) for value in g.labels.values()])
    )
    return groups, notes


def _settings(run: Run) -> dict[str, Any]:
    config = dict(run.config)
    for group in (
        "dataset",
        "model",
        "partition",
        "protocol",
        "method",
        "strategy",
        "attack",
        "runtime",
    ):
        if not isinstance(config.get(group), dict) and group in config:
            config[group] = {"name": config[group]}  # a configuration that only names its choice
    flat = flatten(config)
    flat |= {key: value for key, value in _defaults().items() if key not in flat}
    if "partition.scheme" in flat and "partition.name" not in flat:
        flat["partition.name"] = flat.pop("partition.scheme")
    return {  # nobody drops out, nobody attacks: no setting, as in a run from before there was one
        key: value
        for key, value in flat.items()
        if (value or key not in FIXED) and (value not in ("none", []) or key not in _NONE)
    }


@cache
def _defaults() -> dict[str, Any]:
    """What stands for each setting that a run is too old to have, inside a group."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in Config.missing_values().items()
        if "." in key
    }


def _is_difference(key: str) -> bool:
    group = key.split(".")[0]
    if group == "runtime":
        return key in FIXED
    return key not in _NOT_A_DIFFERENCE and group not in _NOT_A_DIFFERENCE


def _distinguishes(key: str, setups: list[dict[str, Any]]) -> bool:
    """Whether groups differ in the setting; inside a choice, whether groups that
    made the same choice do."""
    group, _, rest = key.partition(".")
    name = f"{group}.name"
    if not rest or rest == "name":
        return len({flat.get(key) for flat in setups}) > 1
    choices = {flat.get(name) for flat in setups}
    return any(
        len({flat.get(key) for flat in setups if flat.get(name) == choice}) > 1
        for choice in choices
    )


def _label_order(setups: Any) -> list[str]:
    """All settings: the method's first, then the task's, then the others."""
    keys = dict.fromkeys(key for flat in setups for key in flat)
    first = ("dataset", "model", "protocol", "partition", "clients", "shots", "method")
    order = {group: index for index, group in enumerate(first)}
    return sorted(
        keys, key=lambda key: (order.get(key.split(".")[0], len(first)), not key.endswith(".name"))
    )


def short_label(key: str) -> str:
    """`method.rank` is `rank`, `dataset.name` is `dataset`; others keep their group, which
    says what they belong to."""
    group, _, rest = key.partition(".")
    return (
        group
        if rest in ("", "name")
        else rest
        if group in ("method", "partition", "training")
        else key
    )


def _age(run: Run) -> tuple[float, str]:
    file = run.path / "summary.json"
    return (file.stat().st_mtime if file.exists() else 0.0, str(run.path))


def _natural(text: str) -> list:
    """Sorts numbers by their value, words by their letters, each among their like."""
    words = text.replace(",", " ").replace("'", " ").replace(")", " ").split()
    keys = []
    for word in words:
        try:
            keys.append((0, float(word), ""))
        except ValueError:
            keys.append((1, 0.0, word))
    return keys
