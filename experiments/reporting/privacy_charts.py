"""The charts of runs with privacy: epsilon over the rounds of one, accuracy against epsilon over
several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from experiments.reporting import charts
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std
from experiments.reporting.tables import Row
from fedpgp.evaluation.figures import ACCURACIES, FIGURES

_OF_NOISE = ("privacy", "privacy.epsilon", "privacy.noise", "privacy.max_epsilon")
"""Labels in which the points of one line differ."""

Points = list[tuple[float, float]]


def privacy_charts(run: Run) -> list[tuple[str, str, list[tuple[str, str]], Any]]:
    """(title, note, legend, chart) of epsilon over the rounds, with its bound, and of a clipping
    norm that adapts; of what there is."""
    settings = run.config.get("privacy")
    settings = settings if isinstance(settings, dict) else {}
    epsilon, clip = (_said(run, name) for name in ("epsilon", "clip"))
    lines = [charts.Series("epsilon", "loss", [(0, 0.0), *epsilon])] if epsilon else []
    for key in ("max_epsilon", "epsilon"):
        most = number(settings.get(key))
        if lines and not math.isnan(most):
            bound = [(0, most), (epsilon[-1][0], most)]
            lines.append(charts.Series(f"privacy.{key}", "zero_shot", bound))
            break
    seeded = "noise of the seed: nothing is private" if settings.get("seeded_noise") else ""
    drawn = [
        (
            "Epsilon",
            seeded or "of the rounds so far",
            [(line.name, line.style) for line in lines] if len(lines) > 1 else [],
            charts.line_chart(lines, title="Epsilon", digits=2, zero=True),
        ),
        (
            "Clipping norm",
            "",
            [],
            charts.line_chart(
                [charts.Series("clip", "loss", clip)], title="Clipping norm", digits=3
            ),
        ),
    ]
    return [entry for entry in drawn if entry[-1]]


def accuracy_against_epsilon(
    named: Sequence[tuple[str, str, Row]],
) -> tuple[list[tuple[str, Any]], list[tuple[str, str]]]:
    """(title, chart) of each accuracy against epsilon, and the legend; none where no two rows
    differ in epsilon.

    Args:
        named: (name, CSS class, row) of the rows of a task. Rows that differ in their noise alone
            are one line; one without privacy is a dashed line at its accuracy.
    """
    lines: dict[tuple, list[tuple[float, str, Row]]] = defaultdict(list)
    without: dict[tuple, tuple[str, Row]] = {}
    for name, _, row in named:
        if row.model == "zero_shot":
            continue
        epsilon = _epsilon(row)
        if math.isnan(epsilon):
            if all(run.choice("privacy") in ("none", "None", "?") for run in row.runs):
                without[_key(row, "privacy")] = (name, row)
        else:
            lines[_key(row, *_OF_NOISE)].append((epsilon, name, row))
    lines = {key: sorted(points, key=lambda p: p[0]) for key, points in lines.items()}
    if not any(len({epsilon for epsilon, _, _ in points}) > 1 for points in lines.values()):
        return [], []
    several = len({row.model for _, _, row in named} - {"zero_shot"}) > 1
    every = [epsilon for points in lines.values() for epsilon, _, _ in points]
    ends = (min(every), max(every))
    unit = next(_unit(row) for points in lines.values() for _, _, row in points)
    drawn, legend = [], {}
    for figure in ACCURACIES:
        series = []
        for slot, points in enumerate(lines.values()):
            cells = [(epsilon, row.cells[figure]) for epsilon, _, row in points]
            cells = [(epsilon, cell) for epsilon, cell in cells if not math.isnan(cell.mean)]
            name, style = points[0][2].name(several, _OF_NOISE), f"c{slot % 10}"
            at = [(epsilon, cell.mean) for epsilon, cell in cells]
            series.append(charts.Series(name, style, at, [cell.std for _, cell in cells]))
            legend[name] = style
            base = without.get(_key(points[0][2], "privacy"))
            level = base[1].cells[figure].mean if base else math.nan
            if not math.isnan(level):
                said = f"{name}, without privacy"
                flat = [(end, level) for end in ends]
                series.append(charts.Series(said, f"{style} dashed", flat))
                legend[said] = f"{style} dashed"
        title, label = FIGURES[figure].caption, f"epsilon{f' of {unit}' if unit else ''}"
        about = {"title": f"{title} against epsilon", "unit": " %", "x_label": label}
        drawn.append((f"{title}, %", charts.line_chart(series, **about)))
    return [(title, chart) for title, chart in drawn if chart], list(legend.items())


def _said(run: Run, name: str) -> Points:
    """(round, value) of a number that the step of ``privacy`` says of each round."""
    step = run.choice("privacy")
    said = [
        (row["round"], number(((row.get("updates") or {}).get(step) or {}).get(name)))
        for row in run.trains
    ]
    return [(x, y) for x, y in said if math.isfinite(y)]


def _epsilon(row: Row) -> float:
    """The mean over seeds of what ``summary.json`` has."""
    found = [number(((run.summary or {}).get("privacy") or {}).get("epsilon")) for run in row.runs]
    return mean_std(found)[0]


def _unit(row: Row) -> str:
    """Who is protected: ``a client``."""
    unit = ((row.runs[0].summary or {}).get("privacy") or {}).get("unit")
    return f"one {unit}" if unit else ""


def _key(row: Row, *dropped: str) -> tuple:
    """What tells a line from the others: the model and the labels but for some, and all settings
    of the group that is dropped."""
    of_group = dropped == ("privacy",)
    return row.model, tuple(
        (label, value)
        for label, value in row.labels.items()
        if label not in dropped and not (of_group and label.startswith("privacy."))
    )
