"""Compares the figures of a run with those of the same run made again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.reporting.groups import group_runs
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std
from experiments.settings import flatten
from experiments.verification.budget import budget_of
from fedpgp.evaluation.figures import FIGURES, LIFELONG, MODELS

EQUAL, INSIDE, OUTSIDE, NOT_COMPARABLE = "equal", "inside", "outside", "not comparable"
ROUNDING = 0.5
"""Points by which a mean over the clients may differ on another processor: it rounds otherwise, and
training amplifies that."""
_OF_FEW = {"worst10": 3.0}
"""Figures of a tenth of the clients: their rounding is about the square root of ten as large."""
_BUDGET = "privacy."
_COSTS = ("bytes_up", "bytes_down")


@dataclass(frozen=True)
class Figure:
    """One figure, as recorded and made again.

    Attributes:
        name: ``personal.local``.
        recorded, again: its values; NaN where there is none.
        allowed: by how much they may differ.
    """

    name: str
    recorded: float
    again: float
    allowed: float

    @property
    def difference(self) -> float:
        """Again minus recorded; NaN where one of them is missing."""
        return self.again - self.recorded

    @property
    def equal(self) -> bool:
        """Whether both are the same number, or both are missing."""
        missing = math.isnan(self.recorded) and math.isnan(self.again)
        return missing or self.recorded == self.again

    @property
    def inside(self) -> bool:
        """Whether the difference is allowed; a figure that is gone is outside."""
        return self.equal or abs(self.difference) <= self.allowed

    def text(self, value: float) -> str:
        """Return a value as a person reads it."""
        return f"{value:.6g}" if self.name.startswith(_BUDGET) else f"{value:.2f}"


@dataclass(frozen=True)
class Verdict:
    """What became of one run.

    Attributes:
        name: of the run or cell.
        status: one of the four words of this module.
        reason: in a sentence.
        figures: those that were compared, in the order of tables.
        details: how many numbers of ``summary.json`` beside them were compared, and how many of
            these are equal to the bit.
        settings: ``(key, recorded, by its command)`` where the two differ.
        environment: ``(what, recorded, here)`` where versions, commit, processor or bytes differ.
        seconds: that the run took this time.
    """

    name: str
    status: str
    reason: str
    figures: Sequence[Figure] = ()
    details: tuple[int, int] = (0, 0)
    settings: Sequence[tuple[str, Any, Any]] = ()
    environment: Sequence[tuple[str, Any, Any]] = ()
    seconds: float = 0.0
    command: str = field(default="")


def figures_of(summary: Mapping) -> dict[str, float]:
    """Return the figures of a summary that are means over the clients.

    Returns:
        ``personal.local`` and so on (percent), ``onboarding.WAY.BUDGET.STEPS``,
        ``attack.success_rate.MODEL`` -> value.
    """
    found: dict[str, float] = {}
    for model in MODELS:
        for names, blocks in ((FIGURES, summary["accuracy"]), (LIFELONG, summary.get("lifelong"))):
            block = (blocks or {}).get(model) or {}
            found |= {f"{model}.{name}": number(block.get(name)) for name in names}
    rates = (summary.get("attack") or {}).get("success_rate") or {}
    found |= {f"attack.success_rate.{model}": number(rate) for model, rate in rates.items()}
    for row in (summary.get("onboarding") or {}).get("results", ()):
        name = f"onboarding.{row['way']}.{row['budget']}.{row['steps']}"
        found[name] = number(row.get("unseen"))
    return {name: value for name, value in found.items() if not math.isnan(value)}


def spread_of(run: Run, others: Sequence[Run]) -> dict[str, float]:
    """Return the sample standard deviation of each figure over the other seeds of a run's cell:
    runs that differ from it in their seed alone. The run itself does not count: its figures are in
    question. Empty where there are fewer than two.

    Args:
        run: one of the cell.
        others: runs among which the others of the cell are looked for.
    """
    experiment = run.config.get("experiment_name")
    same = [other for other in others if other.config.get("experiment_name") == experiment]
    among = {other.path: other for other in same if other.summary and other.path != run.path}
    judged = replace(run, config={**run.config, "seed": None})  # no other run takes its place
    groups, _ = group_runs([*among.values(), judged])
    cell = next(g for g in groups if None in g.runs)
    seeds = [figures_of(one.summary) for seed, one in cell.runs.items() if seed is not None]
    if len(seeds) < 2:
        return {}
    names = set.intersection(*map(set, seeds))
    return {name: mean_std([seed[name] for seed in seeds])[1] for name in names}


def compare(
    recorded: Mapping, again: Mapping, spread: Mapping[str, float], rounding: float = ROUNDING
) -> tuple[list[Figure], tuple[int, int]]:
    """Return the figures of two summaries side by side, and how many of all numbers of their
    accuracies are equal to the bit (how many there are, how many are equal). What only the second
    has is newer than the first. A privacy budget has to be the same.

    Args:
        recorded, again: two ``summary.json``.
        spread: figure -> standard deviation over the seeds.
        rounding: points that a mean over the clients may differ by.
    """
    other = figures_of(again)
    figures = [
        Figure(
            name,
            value,
            other.get(name, math.nan),
            max(rounding * few(name), spread.get(name, 0.0)),
        )
        for name, value in figures_of(recorded).items()
    ]
    budget = budget_of(again)
    figures += [
        Figure(f"{_BUDGET}{key}", value, budget.get(key, math.nan), 0.0)
        for key, value in budget_of(recorded).items()
        if not math.isnan(value) or not math.isnan(budget.get(key, math.nan))
    ]
    before, after = _numbers(recorded), _numbers(again)
    same = sum(before[key] == after.get(key) for key in before)
    return figures, (len(before), same)


def status_of(figures: Sequence[Figure], details: tuple[int, int]) -> str:
    """Return ``equal``, ``inside`` or ``outside``."""
    if not all(figure.inside for figure in figures):
        return OUTSIDE
    exact = all(figure.equal for figure in figures) and details[0] == details[1]
    return EQUAL if exact else INSIDE


def reason_of(
    status: str,
    figures: Sequence[Figure],
    spread: Mapping[str, float],
    rounding: float,
    same_environment: bool,
) -> str:
    """Return the verdict on a run that was made again, in a sentence."""
    if status == EQUAL:
        return f"to the bit in all {len(figures)} figures"
    points = [figure for figure in figures if not math.isnan(figure.difference)]
    most = max(points, key=lambda f: abs(f.difference), default=None)
    if status == INSIDE:
        far = 0.0 if most is None else abs(most.difference)
        within = [f for f in points if abs(f.difference) > rounding * few(f.name)]
        why = "within the spread of its seeds" if within and spread else "within rounding"
        where = ", though versions and processor are the same" if same_environment else ""
        return f"{why}: at most {far:.2g} points{where}"
    wrong = [figure for figure in figures if not figure.inside]
    missing = [figure.name for figure in wrong if math.isnan(figure.again)]
    new = [figure.name for figure in wrong if math.isnan(figure.recorded)]
    if new:
        return f"the recorded run has no {', '.join(new[:4])}"
    if missing:
        return f"the new run has no {', '.join(missing[:4])}"
    worst = max(wrong, key=lambda f: abs(f.difference) / max(f.allowed, 1e-12))
    beside = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"{worst.name} is {worst.text(worst.recorded)} there and {worst.text(worst.again)} here, "
        f"{worst.text(abs(worst.difference))} apart where {worst.text(worst.allowed)} is allowed"
        f"{beside}"
    )


def different_costs(recorded: Mapping, again: Mapping) -> list[tuple[str, Any, Any]]:
    """Return ``(what, recorded, again)`` of the bytes that are not the same: an evaluation of
    another version may send more figures."""
    both = [(name, recorded.get(name), again.get(name)) for name in _COSTS]
    return [entry for entry in both if entry[1] != entry[2]]


def few(name: str) -> float:
    """Return how many times the rounding of a mean over all clients a figure may have."""
    return _OF_FEW.get(name.partition(".")[2], 1.0)


def _numbers(summary: Mapping) -> dict[str, float]:
    """Return every number of the accuracies, also those of domains and of single tasks."""
    blocks = {"accuracy": summary["accuracy"], "lifelong": summary.get("lifelong") or {}}
    flat: dict[str, float] = {}
    for key, value in flatten(blocks).items():
        for index, row in enumerate(value if isinstance(value, list) else [value]):
            for place, entry in enumerate(row if isinstance(row, list) else [row]):
                flat[f"{key}.{index}.{place}"] = number(entry)
    return {key: value for key, value in flat.items() if not math.isnan(value)}
