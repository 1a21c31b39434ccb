"""The page that compares runs: the table over seeds, curves, the trade-off of local against novel accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.reporting import charts, grids, tables
from experiments.reporting.page import environment, partition_bubbles
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std
from experiments.reporting.tables import Row
from experiments.reporting.words import human_bytes, human_seconds

_COLOURS = 8
_PATTERNS = ("", " dashed", " dotted")
_MANY = 10  # marks more than fit a narrow chart with their names


@dataclass(frozen=True)
class Section:
    """The charts of the rows that share a task."""

    title: str
    keys: list[tuple[str, str]]
    curves: list[tuple[str, Any]]
    trade_off: Any
    trade_off_title: str
    trade_off_words: str
    wide: bool
    histogram: Any
    costs: list[tuple[str, Any]]
    bubbles: Any
    partition_words: str


def render_comparison(
    rows: Sequence[Row],
    chart_rows: Sequence[Row],
    columns: Sequence[str],
    models: Sequence[str],
    comparisons: Sequence[tables.Comparison] | None,
    unfinished: Sequence[str],
    notes: Sequence[str],
    command: str,
    published: Sequence[tuple[str, grids.Grid]] = (),
) -> str:
    """The page as HTML text: `rows` in the table, `chart_rows` drawn; `comparisons` None leaves that table out;
    `published` are tables of published figures by experiment."""
    tasks = list(dict.fromkeys(row.task for row in chart_rows))
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            headline=_headline(rows, models),
            lead=_lead(rows),
            table=grids.as_html(tables.result_grid(rows, columns, models)),
            significance=grids.as_html(tables.comparison_grid(comparisons, models)) if comparisons else None,
            significance_words=tables.significance_words(comparisons or ()),
            asked=comparisons is not None,
            sections=[
                _section([row for row in chart_rows if row.task == task], models, len(tasks) > 1) for task in tasks
            ],
            unfinished=unfinished,
            notes=notes,
            command=command,
            published=[(name, grids.as_html(grid)) for name, grid in published],
        )
    )


def _headline(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Who leads, where all rows can be compared; otherwise what is on the page."""
    if len({row.task for row in rows}) == 1 and len(rows) > 1:
        leaders: dict[str, list[str]] = {}
        for column, words in (("local", "local accuracy"), ("novel", "novel accuracy"), ("hm3", "harmonic mean")):
            best = [row for row in rows if row.cells[column].mark == "best"]
            if len(best) == 1:
                name = best[0].name(len(models) > 1)
                leaders.setdefault(name, []).append(f"{words} ({best[0].cells[column].mean:.1f}\u00a0%)")
        if leaders:
            return "; ".join(f"{name} has the best {_and(what)}" for name, what in leaders.items()) + "."
    return f"{len(rows)} setup{'s' * (len(rows) != 1)} side by side."


def _lead(rows: Sequence[Row]) -> str:
    runs = len({run.path for row in rows for run in row.runs})
    seeds = sorted({len(row.seeds) for row in rows})
    how_many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    words = f"{runs} finished run{'s' * (runs != 1)}, {how_many} seed{'s' * (seeds[-1] != 1)} each. "
    first = rows[0].runs[0]
    same = [
        group
        for group in ("dataset", "model", "protocol")
        if len({run.choice(group) for row in rows for run in row.runs}) == 1
    ]
    return words + ("All with " + ", ".join(f"{group} {first.choice(group)}" for group in same) + "." if same else "")


def _section(rows: list[Row], models: Sequence[str], several: bool) -> Section:
    common = {
        key: value
        for key, value in rows[-1].labels.items()
        if key != "method" and value != "–" and all(row.labels[key] in (value, "–") for row in rows)
    }
    title = ", ".join(f"{key} {value}" for key, value in common.items()) if several else ""
    with_model = len(models) > 1
    named: list[tuple[str, str, Row]] = []
    colour = 0
    for row in rows:
        style = "zero_shot"
        if row.model != "zero_shot":
            pattern = _PATTERNS[colour // _COLOURS % len(_PATTERNS)]
            style, colour = f"c{colour % _COLOURS}{pattern}", colour + 1
        named.append((row.name(with_model and row.model != "zero_shot", common if several else ()), style, row))

    curves = []
    for figure in ("local", "base", "novel", "unseen"):
        series = [charts.Series(name, style, *_mean_curve(row, figure)) for name, style, row in named]
        heading = f"{figure.capitalize()} accuracy, %"
        curves.append((heading, charts.line_chart(series, title=heading, unit=" %", end_labels=len(named) <= 8)))
    other = next(
        (f for f in ("novel", "unseen", "base") if any(not math.isnan(row.cells[f].mean) for row in rows)), None
    )
    up = "unseen data" if other == "unseen" else f"{other} classes"
    trade_off, trade_off_title = "", ""
    if other:
        marks = []
        for name, style, row in named:
            x, y = row.cells["local"], row.cells[other]
            seeds = [(x.values[seed], y.values[seed]) for seed in x.values]
            seeds = [point for point in seeds if not any(map(math.isnan, point))]
            marks.append(charts.Mark(name, style, (x.mean, y.mean), (x.std, y.std), seeds if len(seeds) > 1 else []))
        trade_off_title = f"Local against {other} accuracy"
        trade_off = charts.scatter(
            marks,
            title=trade_off_title,
            x_label="local accuracy, %",
            y_label=f"{other} accuracy, %",
            wide=len(marks) > _MANY,
        )
    clients = [
        (name, style, [client["local"] for run in row.runs for client in run.clients if client["model"] == row.model])
        for name, style, row in named
    ]
    trained = [(name, style, row) for name, style, row in named if row.model != "zero_shot"]
    losses = [charts.Series(name, style, *_mean_loss(row)) for name, style, row in trained]
    amounts = {
        column: [(name, style, row.cells[column].mean) for name, style, row in trained]
        for column in ("bytes", "seconds")
    }
    costs = [
        ("Training loss", charts.line_chart(losses, title="Training loss", digits=2, end_labels=len(named) <= 8)),
        ("Bytes, sent and received", charts.value_bars(amounts["bytes"], title="Bytes of a run", text=human_bytes)),
        ("Time of a run", charts.value_bars(amounts["seconds"], title="Time of a run", text=human_seconds)),
    ]
    bubbles, partition_words = partition_bubbles(rows[0].runs[0])
    return Section(
        title=title,
        keys=[(name, style) for name, style, _ in named],
        curves=[(heading, svg) for heading, svg in curves if svg],
        trade_off=trade_off,
        trade_off_title=trade_off_title,
        trade_off_words=f"Further right: better for each client. Further up: better on {up}. "
        "The small dots are seeds, the whiskers one standard deviation.",
        wide=len(named) > _MANY,
        histogram=charts.histogram(
            clients, title="Local accuracy of the clients", what="local accuracy of a client, %"
        ),
        costs=[(heading, svg) for heading, svg in costs if svg],
        bubbles=bubbles,
        partition_words=partition_words,
    )


def _mean_curve(row: Row, figure: str) -> tuple[list[tuple[float, float]], list[float]]:
    return _over_seeds([dict(run.curve(row.model, figure)) for run in row.runs])


def _mean_loss(row: Row) -> tuple[list[tuple[float, float]], list[float]]:
    return _over_seeds([{r["round"]: number(r.get("loss")) for r in run.trains} for run in _distinct(row.runs)])


def _over_seeds(curves: Sequence[dict[int, float]]) -> tuple[list[tuple[float, float]], list[float]]:
    """Mean and standard deviation at the rounds that every seed has."""
    rounds = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    both = [(x, *mean_std([curve[x] for curve in curves])) for x in rounds]
    both = [entry for entry in both if not math.isnan(entry[1])]
    return [(x, mean) for x, mean, _ in both], [std for _, _, std in both]


def _distinct(runs: Sequence[Run]) -> list[Run]:
    return list({run.path: run for run in runs}.values())


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
