"""Paired t-tests of the best row against the others, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.reporting.formatting import format_mean_and_std
from experiments.reporting.grids import Grid
from experiments.reporting.statistics import holm, mean_std, paired_t_test
from experiments.reporting.tables import COSTS, Row, column_name

_FEWEST_SEEDS = 3  # of a t-test that is worth looking at


@dataclass(frozen=True)
class Comparison:
    """The best row of a column against another row of the same task, paired over the seeds both
    have."""

    task: tuple
    column: str
    best: Row
    other: Row
    difference: float
    std: float
    seeds: int
    t: float
    p: float


def compare(rows: Sequence[Row], columns: Sequence[str]) -> list[Comparison]:
    """Return the best row of each task and column against each other one: paired t-tests over
    common seeds.

    The p values are Holm's, corrected for all comparisons that are returned.
    """
    found = []
    for task in dict.fromkeys(row.task for row in rows):
        block = [row for row in rows if row.task == task]
        for column in columns:
            best = next(
                (row for row in block if column in row.cells and row.cells[column].mark == "best"),
                None,
            )
            if best is None or column in COSTS:
                continue
            for row in block:
                if row is best or column not in row.cells:
                    continue
                mine, theirs = best.cells[column].values, row.cells[column].values
                seeds = [
                    seed
                    for seed in mine
                    if seed in theirs and not math.isnan(mine[seed] + theirs[seed])
                ]
                if seeds:
                    first, second = [mine[seed] for seed in seeds], [theirs[seed] for seed in seeds]
                    difference, std = mean_std([a - b for a, b in zip(first, second, strict=True)])
                    t, p = paired_t_test(first, second)
                    found.append(
                        Comparison(task, column, best, row, difference, std, len(seeds), t, p)
                    )
    corrected = holm([one.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, corrected, strict=True)]


def significance_words(comparisons: Sequence[Comparison]) -> list[str]:
    """Return how the p values of `compare` are to be read."""
    tested = sum(not math.isnan(one.p) for one in comparisons)
    few = sum(one.seeds < _FEWEST_SEEDS for one in comparisons)
    words = [
        "Student’s t-test, paired over seeds, two-sided; p after Holm’s correction for all "
        f"{tested} tests shown"
    ]
    if few:
        words.append(
            f"{few} of {len(comparisons)} comparisons have fewer than {_FEWEST_SEEDS} seeds in "
            "common: too few to conclude anything from; run more (-m seed=0,1,2)"
        )
    return words


def comparison_grid(comparisons: Sequence[Comparison], models: Sequence[str]) -> Grid:
    """Return the table of `compare`."""
    body, breaks = [], set()
    for index, one in enumerate(comparisons):
        if index and one.task != comparisons[index - 1].task:
            breaks.add(index)
        p = "–" if math.isnan(one.p) else "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
        t = "–" if math.isnan(one.t) else "∞" if math.isinf(one.t) else f"{one.t:.2f}"
        texts = [
            column_name(one.column),
            one.best.name(len(models) > 1),
            one.other.name(len(models) > 1),
        ]
        texts += [format_mean_and_std(one.difference, one.std, "+"), str(one.seeds), t, p]
        body.append([(text, "") for text in texts])
    return Grid(
        ["figure", "best", "against", "difference", "seeds", "t", "p"], body, 3, frozenset(breaks)
    )
