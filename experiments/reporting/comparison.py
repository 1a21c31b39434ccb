"""The page that compares runs: the table over seeds, curves, the trade-off of local
against novel accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from experiments.reporting import charts, grids, scatter, significance, tables
from experiments.reporting.formatting import format_bytes, format_seconds
from experiments.reporting.headlines import comparison_headline
from experiments.reporting.newcomers import of_newcomers
from experiments.reporting.page import environment, partial_words, partition_bubbles
from experiments.reporting.privacy_charts import accuracy_against_epsilon
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std
from experiments.reporting.styles import row_styles
from experiments.reporting.tables import Row, common_labels, words_of
from experiments.reporting.task_charts import task_curve
from fedpgp.evaluation.figures import ACCURACIES

_MANY = 8  # rows more than fit a narrow chart with their names


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
    partial: str
    costs: list[tuple[str, Any]]
    privacy: list[tuple[str, Any]]
    privacy_keys: list[tuple[str, str]]
    newcomers: list[tuple]
    bubbles: Any
    partition_words: str


def render_comparison(
    rows: Sequence[Row],
    chart_rows: Sequence[Row],
    columns: Sequence[str],
    models: Sequence[str],
    comparisons: Sequence[significance.Comparison] | None,
    unfinished: Sequence[str],
    notes: Sequence[str],
    command: str,
    published: Sequence[tuple[str, grids.Grid]] = (),
) -> str:
    """Return the page as HTML text: `rows` in the table, `chart_rows` drawn; `comparisons` None
    leaves that table out; `published` are tables of published figures by experiment. The mean over
    parts of a protocol (domains held out in turn) comes first, in table and charts; the parts'
    charts are folded."""
    means, over = tables.over_parts(rows, columns)
    parts = [row for row in chart_rows if means and tables.is_part(row)]
    others = [row for row in chart_rows if row not in parts]
    drawn_means = tables.over_parts(parts, columns)[0]
    sections = [
        replace(one, title=over, partition_words="", bubbles="")
        for one in _sections(drawn_means, models)
    ]
    sections += _sections(others, models, several=bool(means))
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            headline=comparison_headline([*drawn_means, *others], len(models) > 1),
            lead=_lead(rows),
            over=over,
            mean_table=grids.as_html(tables.result_grid(means, columns, models)) if means else None,
            table=grids.as_html(tables.result_grid(rows, columns, models)),
            significance=[
                (grid.heading, grids.as_html(grid))
                for grid in significance.comparison_grids(comparisons or (), models)
            ],
            significance_words=significance.significance_words(comparisons or ()),
            asked=comparisons is not None,
            only_parts=bool(means) and not others,
            sections=sections,
            folded=_sections(parts, models, several=True),
            unfinished=unfinished,
            notes=notes,
            command=command,
            published=[(name, grids.as_html(grid)) for name, grid in published],
        )
    )


def _lead(rows: Sequence[Row]) -> str:
    runs = len({run.path for row in rows for run in row.runs})
    seeds = sorted({len(row.seeds) for row in rows})
    how_many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    words = (
        f"{runs} finished run{'s' * (runs != 1)}, {how_many} seed{'s' * (seeds[-1] != 1)} each. "
    )
    if seeds[-1] == 1:
        words += "One seed does not tell how much of a difference is chance. "
    first = rows[0].runs[0]
    same = [
        group
        for group in ("dataset", "model", "protocol")
        if len({run.choice(group) for row in rows for run in row.runs}) == 1
    ]
    return words + (
        "All with " + ", ".join(f"{group} {first.choice(group)}" for group in same) + "."
        if same
        else ""
    )


def _sections(rows: Sequence[Row], models: Sequence[str], several: bool = False) -> list[Section]:
    """Return a section a task; `several` titles even a single one."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    return [
        _section([row for row in rows if row.task == task], models, several or len(tasks) > 1)
        for task in tasks
    ]


def _section(rows: list[Row], models: Sequence[str], several: bool) -> Section:
    common = common_labels(rows)
    title = words_of(common) if several else ""
    with_model = len(models) > 1
    named = [
        (row.name(with_model, common if several else ()), style, row)
        for row, style in zip(rows, row_styles(rows), strict=True)
    ]
    many = len(named) > _MANY
    partial = {style: _partial(row) for _, style, row in named}

    curves = []
    for figure in ACCURACIES:
        series = [
            charts.Series(name, style, *_mean_curve(row, figure), partial[style])
            for name, style, row in named
        ]
        heading = f"{figure.capitalize()} accuracy, %"
        curves.append((heading, charts.line_chart(series, title=heading, unit=" %", wide=many)))
    series = [charts.Series(name, style, *_mean_task_curve(row)) for name, style, row in named]
    heading = "Mean accuracy on the tasks so far, %"
    about = {"title": heading, "unit": " %", "wide": many, "x_label": "after task"}
    curves.append((heading, charts.line_chart(series, **about)))
    other = next(
        (
            f
            for f in ("novel", "unseen", "base")
            if any(not math.isnan(row.cells[f].mean) for row in rows)
        ),
        None,
    )
    up = "unseen data" if other == "unseen" else f"{other} classes"
    trade_off, trade_off_title = "", ""
    if other:
        marks = []
        for name, style, row in named:
            x, y = row.cells["local"], row.cells[other]
            seeds = [(x.values[seed], y.values[seed]) for seed in x.values]
            seeds = [point for point in seeds if not any(map(math.isnan, point))]
            marks.append(
                scatter.Mark(
                    name, style, (x.mean, y.mean), (x.std, y.std), seeds if len(seeds) > 1 else []
                )
            )
        trade_off_title = f"Local against {other} accuracy"
        trade_off = scatter.scatter(
            marks,
            title=trade_off_title,
            x_label="local accuracy, %",
            y_label=f"{other} accuracy, %",
            wide=many,
        )
    clients = [
        (
            name,
            style,
            [
                client["local"]
                for run in row.runs
                for client in run.clients
                if client["model"] == row.model
            ],
        )
        for name, style, row in named
    ]
    once: dict[tuple, tuple[str, str, Row]] = {}  # both models of a run have one loss and one cost
    for _, style, row in named:
        if row.model != "zero_shot":
            bare = row.name(False, common if several else ())
            once[tuple(row.labels.items())] = (bare, style.removesuffix(" shared"), row)
    trained = list(once.values())
    losses = [charts.Series(name, style, *_mean_loss(row)) for name, style, row in trained]
    sent = [(name, style, row.cells["bytes"].mean) for name, style, row in trained]
    times = [(name, style, _computing(row)) for name, style, row in trained]
    costs = [
        (
            "Training loss",
            charts.line_chart(losses, title="Training loss", digits=2, end_labels=not many),
        ),
        (
            "Bytes, sent and received",
            charts.value_bars(sent, title="Bytes of a run", text=format_bytes),
        ),
        (
            "Time of a run, without encoding images",
            charts.value_bars(
                times, title="Time of a run, without encoding images", text=format_seconds
            ),
        ),
    ]
    privacy, privacy_keys = accuracy_against_epsilon(named)
    bubbles, partition_words = partition_bubbles(rows[0].runs[0])
    return Section(
        title=title,
        keys=[(name, style) for name, style, _ in named],
        curves=[(heading, svg) for heading, svg in curves if svg],
        trade_off=trade_off,
        trade_off_title=trade_off_title,
        trade_off_words=f"Further right: better for each client. Further up: better on {up}. "
        "The small dots are seeds, the whiskers one standard deviation.",
        wide=many,
        partial=_partial_note(named),
        histogram=charts.histogram(
            clients, title="Local accuracy of the clients", what="local accuracy of a client, %"
        ),
        costs=[(heading, svg) for heading, svg in costs if svg],
        privacy=privacy,
        privacy_keys=privacy_keys,
        newcomers=[entry for name, _, row in trained if (entry := of_newcomers(row.runs, name))],
        bubbles=bubbles,
        partition_words=partition_words,
    )


def _partial(row: Row) -> set[int]:
    """Rounds in which the mean of some seed is over fewer clients than the others."""
    return {index for run in row.runs for index in run.partial}


def _partial_note(named: Sequence[tuple[str, str, Row]]) -> str:
    runs = _distinct([run for _, _, row in named for run in row.runs if run.partial])
    if not runs:
        return ""
    return " ".join(
        partial_words(run.partial, f" {tables.describe(run)}") for run in runs[:3]
    ) + " …" * (len(runs) > 3)


def _computing(row: Row) -> float:
    """Return the mean seconds of a row's runs without the encoding of images, which only the first
    run on a machine does."""
    seconds = [(run.summary or {}).get("seconds") or {} for run in row.runs]
    return mean_std(
        [
            number(one.get("total")) - (number(one.get("encode")) if "encode" in one else 0)
            for one in seconds
        ]
    )[0]


def _mean_curve(row: Row, figure: str) -> tuple[list[tuple[float, float]], list[float]]:
    return _over_seeds([(run.seed, dict(run.curve(row.model, figure))) for run in row.runs])


def _mean_task_curve(row: Row) -> tuple[list[tuple[float, float]], list[float]]:
    return _over_seeds([(run.seed, dict(task_curve(run.matrix(row.model)))) for run in row.runs])


def _mean_loss(row: Row) -> tuple[list[tuple[float, float]], list[float]]:
    return _over_seeds(
        [
            (run.seed, {r["round"]: number(r.get("loss")) for r in run.trains})
            for run in _distinct(row.runs)
        ]
    )


def _over_seeds(
    curves: Sequence[tuple[Any, dict[int, float]]],
) -> tuple[list[tuple[float, float]], list[float]]:
    """Return the mean and standard deviation over seeds at the rounds that every run has; of
    several runs of a seed (parts of a protocol) first the mean."""
    by_seed: dict[Any, list[dict[int, float]]] = {}
    for seed, curve in curves:
        by_seed.setdefault(seed, []).append(curve)
    rounds = sorted(set.intersection(*(set(curve) for _, curve in curves))) if curves else []
    both = [
        (x, *mean_std([fmean(curve[x] for curve in of) for of in by_seed.values()])) for x in rounds
    ]
    both = [entry for entry in both if not math.isnan(entry[1])]
    return [(x, mean) for x, mean, _ in both], [std for _, _, std in both]


def _distinct(runs: Sequence[Run]) -> list[Run]:
    return list({run.path: run for run in runs}.values())
