"""Paired t-tests of the best row against the others, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.reporting.formatting import format_mean_and_std
from experiments.reporting.grids import Grid
from experiments.reporting.statistics import holm, mean_std, paired_t_test
from experiments.reporting.tables import COSTS, Row, column_name, common_labels, words_of

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


def comparison_grids(comparisons: Sequence[Comparison], models: Sequence[str]) -> list[Grid]:
    """Return the tables of `compare`, one a task; what its rows have in common stands above it."""
    tasks = list(dict.fromkeys(one.task for one in comparisons))
    grids = []
    for task in tasks:
        block = [one for one in comparisons if one.task == task]
        rows = [row for one in block for row in (one.best, one.other)]
        same = common_labels(rows) if len(tasks) > 1 else {}
        body = [_texts(one, len(models) > 1, same) for one in block]
        header = ["figure", "best", "against", "difference", "seeds", "t", "p"]
        grids.append(Grid(header, body, 3, heading=words_of(same)))
    return grids


def _texts(one: Comparison, with_model: bool, same: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the row of a table, without the labels that all have alike."""
    p = "–" if math.isnan(one.p) else "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
    t = "–" if math.isnan(one.t) else "∞" if math.isinf(one.t) else f"{one.t:.2f}"
    names = [row.name(with_model, same) for row in (one.best, one.other)]
    figures = [format_mean_and_std(one.difference, one.std, "+"), str(one.seeds), t, p]
    return [(text, "") for text in (column_name(one.column), *names, *figures)]
