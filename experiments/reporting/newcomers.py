"""Newcomers of runs: their accuracy against images a class and steps, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.reporting import charts
from experiments.reporting.formatting import format_bytes, format_mean_and_std
from experiments.reporting.grids import Grid, as_html
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std

_Cell = tuple[str, str, int]
"""Way, budget as it is shown, steps."""


def newcomer_grid(runs: Sequence[Run], heading: str = "Newcomers") -> Grid | None:
    """Return the table of runs that differ in their seed: a row a way and number of steps, a column
    a budget; None where nobody was onboarded."""
    found = [_results(run) for run in runs]
    cells = list(dict.fromkeys(cell for each in found for cell in each))
    if not cells:
        return None
    budgets = sorted({budget for _, budget, _ in cells}, key=_in_order)
    rows, numbers, breaks = [], [], []
    for way, steps in _lines(cells):
        columns = [_cell(cells, way, budget, steps) for budget in budgets]
        values = [_mean(found, cell, "unseen") for cell in columns]
        up = mean_std([_bytes(each, columns) for each in found])[0]
        if rows and rows[-1][0][0] != way:
            breaks.append(len(rows))
        shown = [format_mean_and_std(*value) for value in values]
        rows.append([(text, "") for text in (way, str(steps), *shown, format_bytes(up))])
        numbers.append((math.nan, float(steps), *(mean for mean, _ in values), up))
    trained = mean_std([number(_block(run).get("trained")) for run in runs])
    heading = f"{heading}: accuracy in % at so many images a class"
    if not math.isnan(trained[0]):
        heading += f"; trained clients have {format_mean_and_std(*trained)}"
    header = ["way", "steps", *budgets, "bytes"]
    return Grid(header, rows, 2, frozenset(breaks), tuple(numbers), heading)


def newcomer_chart(runs: Sequence[Run]) -> tuple[Any, list[tuple[str, str]]]:
    """Return the picture and its legend: accuracy against images a class after the most steps, a
    line a way; the global prompt and trained clients dashed. Empty where nobody was onboarded."""
    found = [_results(run) for run in runs]
    cells = list(dict.fromkeys(cell for each in found for cell in each))
    budgets = sorted({int(budget) for _, budget, _ in cells if budget != "all"})
    if len(budgets) < 2:
        return "", []
    series = []
    for slot, way in enumerate(dict.fromkeys(way for way, _, _ in cells if way != "global")):
        most = max(steps for name, _, steps in cells if name == way)
        points = [
            (budget, *_mean(found, _cell(cells, way, str(budget), most), "unseen"))
            for budget in budgets
        ]
        points = [point for point in points if not math.isnan(point[1])]
        spread = [0.0 if math.isnan(std) else std for *_, std in points]
        series.append(charts.Series(way, f"c{slot % 10}", [(x, y) for x, y, _ in points], spread))
    trained = mean_std([number(_block(run).get("trained")) for run in runs])[0]
    start = _mean(found, ("global", "0", 0), "unseen")[0]
    ends = (budgets[0], budgets[-1])
    for name, style, level in (
        ("global prompt", "global dashed", start),
        ("trained clients", "personal dashed", trained),
    ):
        if not math.isnan(level):
            series.append(charts.Series(name, style, [(end, level) for end in ends]))
    about = {"title": "Accuracy of newcomers", "unit": " %", "x_label": "images a class"}
    return charts.line_chart(series, **about), [(one.name, one.style) for one in series]


def of_newcomers(runs: Sequence[Run], name: str = "") -> tuple | None:
    """Return (name, chart, legend, table) for a page; None where nobody was onboarded."""
    grid = newcomer_grid(runs)
    if grid is None:
        return None
    return name, *newcomer_chart(runs), grid.heading, as_html(grid)


def _block(run: Run) -> dict:
    block = (run.summary or {}).get("onboarding")
    return block if isinstance(block, dict) else {}


def _results(run: Run) -> dict[_Cell, dict]:
    """What a run has of each way, budget and number of steps."""
    found = {}
    rows = _block(run).get("results")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("steps"), int):
            budget = row.get("budget")
            shown = "all" if budget is None else str(budget)
            if shown == "all" or shown.isdigit():
                found[str(row.get("way")), shown, row["steps"]] = row
    return found


def _lines(cells: Sequence[_Cell]) -> list[tuple[str, int]]:
    """Way and steps of each row: a way whose steps are 0 without images has no row of its own for
    that where it has others."""
    found = []
    for way in dict.fromkeys(way for way, _, _ in cells):
        mine = [(budget, steps) for name, budget, steps in cells if name == way]
        own = {steps for budget, steps in mine if budget != "0"}
        own |= {steps for budget, steps in mine if budget == "0" and steps}
        found += [(way, steps) for steps in sorted(own or {0})]
    return found


def _cell(cells: Sequence[_Cell], way: str, budget: str, steps: int) -> _Cell:
    """The cell of a way, a budget and a number of steps: without images most ways have no step."""
    none = budget == "0" and (way, budget, steps) not in cells
    return way, budget, 0 if none else steps


def _mean(found: Sequence[dict], cell: _Cell, name: str) -> tuple[float, float]:
    return mean_std([number(each[cell].get(name)) for each in found if cell in each])


def _bytes(found: dict[_Cell, dict], cells: Sequence[_Cell]) -> float:
    """Bytes that newcomers sent and received in the costliest of these cells."""
    both = [
        number(found[cell].get("bytes_up")) + number(found[cell].get("bytes_down"))
        for cell in cells
        if cell in found
    ]
    return max(both, default=math.nan)


def _in_order(budget: str) -> float:
    return math.inf if budget == "all" else int(budget)
