"""What the results site draws: the trade-off of two accuracies, accuracy against what it costs, and
a dot a seed in each cell of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from experiments.reporting.formatting import format_bytes
from experiments.reporting.scatter import Mark, scatter
from experiments.reporting.tables import Row, column_name

MOST_MARKS = 40
"""Rows that a chart can name; of more none is drawn."""
_PAIRS = (
    ("local", "novel"),
    ("local", "unseen"),
    ("local", "base"),
    ("last", "backward"),
    ("local", "worst10"),
)
_ACCURACIES = ("unseen", "last", "hm3", "local")
_WIDE, _TALL, _EDGE = 54, 9, 3

Named = Sequence[tuple[str, str, Row]]
"""(name, CSS classes, row)."""


def trade_off_chart(named: Named) -> tuple[str, Markup] | None:
    """Return (title, chart) of two accuracies of the rows; None where no two are measured, or where
    there are too many rows to name."""
    if len(named) > MOST_MARKS:
        return None
    for first, second in _PAIRS:
        marks = [_mark(*entry, first, second) for entry in named]
        if sum(not any(map(math.isnan, mark.mean)) for mark in marks) > 1:
            title = f"{_capital(column_name(first))} against {column_name(second)}, %"
            names = {"x_label": f"{column_name(first)}, %", "y_label": f"{column_name(second)}, %"}
            return title, scatter(marks, title=title, wide=True, front=1, **names)
    return None


def cost_chart(named: Named) -> tuple[str, Markup] | None:
    """Return (title, chart) of the most telling accuracy against the bytes of a run, on a
    logarithmic axis; None as for :func:`trade_off_chart`."""
    if len(named) > MOST_MARKS:
        return None
    for column in _ACCURACIES:
        marks = []
        for name, style, row in named:
            sent, reached = _mean(row, "bytes"), row.cells.get(column)
            if reached is None or math.isnan(reached.mean) or not sent > 0:
                continue
            x = math.log10(sent)
            seeds = [(x, y) for y in reached.values.values() if not math.isnan(y)]
            spread = (0.0, reached.std)
            points = seeds if len(seeds) > 1 else []
            marks.append(Mark(name, style, (x, reached.mean), spread, points))
        if len(marks) > 1:
            title = f"{_capital(column_name(column))} against what is sent"
            drawn = scatter(
                marks,
                title=title,
                x_label="bytes sent and received in a run",
                y_label=f"{column_name(column)}, %",
                wide=True,
                front=-1,
                x_text=lambda x: format_bytes(10**x),
            )
            return title, drawn
    return None


def seed_dots(values: Mapping[Any, float], low: float, high: float) -> Markup:
    """Return a dot a seed between the least and the largest value of a column; empty for fewer than
    two seeds."""
    found = [value for value in values.values() if not math.isnan(value)]
    if len(found) < 2 or not high > low:
        return Markup("")
    dots = "".join(
        f'<circle cx="{_EDGE + (value - low) / (high - low) * (_WIDE - 2 * _EDGE):.1f}" '
        f'cy="{_TALL / 2}" r="2.2"/>'
        for value in found
    )
    return Markup(
        f'<svg class="seeds" viewBox="0 0 {_WIDE} {_TALL}" width="{_WIDE}" height="{_TALL}" '
        f'aria-hidden="true">{dots}</svg>'
    )


def _mark(name: str, style: str, row: Row, first: str, second: str) -> Mark:
    x, y = row.cells.get(first), row.cells.get(second)
    if x is None or y is None:
        return Mark(name, style, (math.nan, math.nan), (0.0, 0.0), [])
    seeds = [(x.values[seed], y.values[seed]) for seed in x.values]
    seeds = [point for point in seeds if not any(map(math.isnan, point))]
    return Mark(name, style, (x.mean, y.mean), (x.std, y.std), seeds if len(seeds) > 1 else [])


def _mean(row: Row, column: str) -> float:
    cell = row.cells.get(column)
    return math.nan if cell is None else cell.mean


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
