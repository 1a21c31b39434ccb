"""What a page draws of a run over several tasks: its figures, the matrix R[t, s] of each model, and
the curves of each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from experiments.reporting import charts
from experiments.reporting.client_panels import distinct_models
from experiments.reporting.drawing import WIDTH, escape, svg
from experiments.reporting.formatting import format_percent
from experiments.reporting.page_tables import is_best
from experiments.reporting.runs import Run
from fedpgp.evaluation.figures import LIFELONG

_MOST_NAMES = 12
"""Tasks whose names a matrix writes."""


def task_section(run: Run) -> dict[str, Any] | None:
    """Return the template's ``tasks``: table, words, charts of the means and of each model; None
    for a run without tasks."""
    models = [(name, key) for name, key in distinct_models(run) if run.matrix(key)]
    if not models:
        return None
    names = run.task_names or [str(s + 1) for s in range(len(run.matrix(models[0][1])[0]))]
    means = [charts.Series(name, key, task_curve(run.matrix(key))) for name, key in models]
    title = "Mean accuracy on the tasks so far, %"
    drawn = [(title, [], charts.line_chart(means, title=title, unit=" %", x_label="after task"))]
    for name, key in models:
        drawn.append((f"{name}: each task, %", [], matrix_chart(run, name, key, names)))
        legend, curves = _curves(run, name, key, names)
        drawn.append((f"{name}: over time, %", legend, curves))
    return {
        "columns": [figure.title for figure in LIFELONG.values()],
        "rows": _table(run, models),
        "words": " ".join(
            f"{figure.title[0].upper()}{figure.title[1:]}: {figure.meaning}."
            for figure in LIFELONG.values()
        ),
        "charts": drawn,
    }


def task_curve(matrix: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return (task, mean accuracy on it and those before it) after each task."""
    points = []
    for task, row in enumerate(matrix, start=1):
        known = [value for value in row[:task] if not math.isnan(value)]
        if known:
            points.append((task, sum(known) / len(known)))
    return points


def matrix_chart(run: Run, name: str, key: str, names: Sequence[str]) -> Markup:
    """Return a model's matrix: a row after each task, a column on each; the deeper, the higher.
    A frame marks the task that has just been learned."""
    matrix = run.matrix(key)
    values = [value for row in matrix for value in row if not math.isnan(value)]
    low, high = min(values), max(values)
    left, top, tasks = 46, 20, len(matrix[0])
    side = (WIDTH - left - 8) / tasks
    tall = min(side, 30.0)
    parts = [
        f'<text class="label" x="{left - 8}" y="12" text-anchor="end">after</text>',
        f'<text class="label" x="{WIDTH - 8}" y="12" text-anchor="end">on task</text>',
    ]
    for s in range(tasks):
        if tasks <= _MOST_NAMES:
            parts.append(
                f'<text class="tick" x="{left + side * (s + 0.5):.1f}" y="{top + 10}" '
                f'text-anchor="middle">{s + 1}<title>{escape(names[s])}</title></text>'
            )
    top += 16
    for t, row in enumerate(matrix):
        y = top + tall * t
        parts.append(
            f'<text class="name" x="{left - 8}" y="{y + tall / 2 + 4:.1f}" '
            f'text-anchor="end">{t + 1}</text>'
        )
        for s, value in enumerate(row):
            if math.isnan(value):
                continue
            x, deep = left + side * s, (value - low) / (high - low) if high > low else 0.5
            hint = escape(f"after {names[t]}, on {names[s]}: {value:.1f} %")
            edge = ' stroke="currentColor" stroke-width="1.4"' if s == t else ""
            parts.append(
                f'<rect class="fill {key}" x="{x + 1:.1f}" y="{y + 1:.1f}" '
                f'width="{side - 2:.1f}" height="{tall - 2:.1f}" rx="2" '
                f'fill-opacity="{0.08 + 0.62 * deep:.2f}"{edge}><title>{hint}</title></rect>'
            )
            if side >= 22:
                parts.append(
                    f'<text class="value" x="{x + side / 2:.1f}" y="{y + tall / 2 + 4:.1f}" '
                    f'text-anchor="middle" pointer-events="none">{value:.0f}</text>'
                )
    return svg(WIDTH, top + tall * len(matrix) + 6, f"{name}: accuracy on each task", parts)


def _curves(
    run: Run, name: str, key: str, names: Sequence[str]
) -> tuple[list[tuple[str, str]], Markup]:
    """Return a legend of the tasks, and a line each, from the first evaluation to the last."""
    matrix = run.matrix(key)
    legend = [(names[s], f"c{s % 10}") for s in range(len(matrix[0]))]
    series = [
        charts.Series(
            task,
            style,
            [(t + 1, row[s]) for t, row in enumerate(matrix) if not math.isnan(row[s])],
        )
        for s, (task, style) in enumerate(legend)
    ]
    title = f"{name}: each task over time"
    drawn = charts.line_chart(series, title=title, unit=" %", x_label="after task")
    return legend[:_MOST_NAMES], drawn


def _table(run: Run, models: Sequence[tuple[str, str]]) -> list[dict]:
    """Return a row a model: (text, whether it is the best of its column) a figure."""
    rows = [
        {"key": key, "name": name, "cells": [format_percent(run.figure(key, f)) for f in LIFELONG]}
        for name, key in models
    ]
    for k, figure in enumerate(LIFELONG.values()):
        column = [row["cells"][k] for row in rows]
        signed = [_turned(text) for text in column] if figure.lower_is_better else column
        for index, row in enumerate(rows):
            row["cells"][k] = (column[index].replace("-", "−"), is_best(signed, index))
    return rows


def _turned(text: str) -> str:
    """Return a printed number with the other sign."""
    return text if text == "–" else str(-float(text))
