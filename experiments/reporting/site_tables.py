"""The tables of the results site: which there are, and a page of those on one protocol and data
set."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.reporting.commands import single_command
from experiments.reporting.grids import as_html
from experiments.reporting.groups import group_runs
from experiments.reporting.headlines import comparison_headline
from experiments.reporting.measured import name_of
from experiments.reporting.page import environment
from experiments.reporting.published_figures import published_grid
from experiments.reporting.runs import Run
from experiments.reporting.site_charts import cost_chart, seed_dots, trade_off_chart
from experiments.reporting.styles import row_styles
from experiments.reporting.tables import (
    COSTS,
    Row,
    cell_text,
    column_name,
    common_labels,
    expand_columns,
    make_rows,
    shown_columns,
    words_of,
)
from experiments.reporting.titles import title
from fedpgp.evaluation.figures import COLUMNS, FIGURES, LIFELONG, MODELS
from fedpgp.methods import METHODS
from fedpgp.methods.about import LEARNED

_MODELS = ("zero_shot", "global", "personal")
FIRST = ("local", "base", "novel", "hm3", "unseen", "last", "forgetting", "privacy.epsilon")
"""Columns that a table shows before anybody chose others; costs are shown too."""
_BESIDE = {
    "privacy.epsilon": "epsilon",
    "attack.success_rate.personal": "attack succeeds",
    "audit.canaries.epsilon": "epsilon found",
    "audit.images.global.auc": "audit AUC, images",
    "audit.clients.global.auc": "audit AUC, clients",
}
"""Columns beside the figures and costs -> what stands above them."""


@dataclass(frozen=True)
class Section:
    """A table of the site: the runs of one experiment on one protocol and data set.

    Attributes:
        experiment: its name.
        page: the file that it is in.
        anchor: its place there.
        rows: of ``make_rows``.
        columns: that some row has a number for.
        runs: that the rows are of.
    """

    experiment: str
    page: str
    anchor: str
    rows: Sequence[Row]
    columns: Sequence[str]
    runs: Sequence[Run]

    @property
    def common(self) -> dict[str, str]:
        """The labels that all rows have alike."""
        return common_labels(self.rows)

    @property
    def own(self) -> list[Row]:
        """The rows of what a client uses: without the global prompts of methods that give each
        client its own."""
        personal = {id(run) for row in self.rows if row.model == "personal" for run in row.runs}
        return [
            row
            for row in self.rows
            if row.model != "global" or not any(id(run) in personal for run in row.runs)
        ]


def _by_table(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Return (protocol, data set, experiment) -> its runs, the tables with the most methods first
    among those of a page."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        key = (run.choice("protocol"), run.choice("dataset"), name_of(run))
        found.setdefault(key, []).append(run)

    def order(key: tuple[str, str, str]) -> tuple:
        return key[:2], -len({run.choice("method") for run in found[key]}), key[2]

    return {key: found[key] for key in sorted(found, key=order)}


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """Return the tables of runs, those of a page together."""
    return [_section(*key, of) for key, of in _by_table(runs).items()]


def _section(protocol: str, dataset: str, experiment: str, runs: Sequence[Run]) -> Section:
    groups, _ = group_runs(runs)
    asked = [*FIGURES, *LIFELONG, *(name for name in _BESIDE if _has(runs, name)), *COSTS]
    columns = expand_columns([name for name in asked if name != "val"], runs)
    rows = make_rows(groups, _MODELS, columns)
    page = f"{file_name(f'{protocol}-{dataset}')}.html"
    return Section(
        experiment, page, file_name(experiment), rows, shown_columns(rows, columns), runs
    )


def _has(runs: Sequence[Run], column: str) -> bool:
    """Return whether some run has a number of a column that is no figure."""
    group, *names = column.split(".")
    for run in runs:
        value: Any = run.audit if group == "audit" else (run.summary or {}).get(group)
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True
    return False


def rows_of(method: str, section: Section) -> list[Row]:
    """Return the rows of a method, of the prompts that its clients use."""
    return [row for row in section.own if row.labels["method"] == method]


def file_name(text: str) -> str:
    """Return a text as the name of a file or an anchor."""
    return re.sub(r"[^\w.-]+", "-", text)


def method_page(name: str) -> str:
    """Return the file of a method's page."""
    return f"method-{file_name(name)}.html"


def page_title(sections: Sequence[Section]) -> str:
    """Return the title of the page of some tables."""
    run = sections[0].runs[0]
    return f"{run.choice('protocol')} on {run.choice('dataset')}"


def table_page(
    sections: Sequence[Section], pages: Mapping[str, Sequence[Section]], folder: Path
) -> str:
    """Return a page as HTML text.

    Args:
        sections: its tables.
        pages: file -> its tables, of all pages.
        folder: of the site, from which links to reports go out.
    """
    return (
        environment()
        .get_template("site_table.html.j2")
        .render(
            title=page_title(sections),
            pages=[(page, page_title(found)) for page, found in pages.items()],
            page=sections[0].page,
            sections=[_drawn(section, folder) for section in sections],
            kinds=LEARNED,
        )
    )


def _drawn(section: Section, folder: Path) -> dict[str, Any]:
    """Return a table as its template has it."""
    common, rows = section.common, section.rows
    labels = [name for name in rows[0].labels if name not in common]
    styles, own = row_styles(rows), {id(row) for row in section.own}
    named = [
        (row.name(False, common), style, row)
        for row, style in zip(rows, styles, strict=True)
        if id(row) in own
    ]
    columns = [
        {
            "key": name,
            "title": _BESIDE.get(name, column_name(name)),
            "meaning": COLUMNS[name].meaning if name in COLUMNS else "",
            "shown": name in (*FIRST, *COSTS[:2]),
        }
        for name in section.columns
    ]
    ranges = {name: _range(rows, name) for name in section.columns}
    published = published_grid(section.experiment, section.runs)
    return {
        "anchor": section.anchor,
        "name": section.experiment,
        "headline": _headline([row for *_, row in named], common),
        "common": words_of(common),
        "labels": labels,
        "columns": columns,
        "rows": [
            _row(row, style, section, labels, ranges)
            | {"beside": id(row) not in own, "first": k > 0 and row.task != rows[k - 1].task}
            for k, (row, style) in enumerate(zip(rows, styles, strict=True))
        ],
        "trade_off": trade_off_chart(named),
        "cost": cost_chart(named),
        "published": as_html(published) if published else "",
        "runs": [_runs_of(row, name, folder) for name, _, row in named if _made_it(row)],
    }


def _headline(rows: Sequence[Row], common: Mapping[str, str]) -> str:
    """Return what the rows say that can be compared; of several such blocks, the largest."""
    tasks = [row.task for row in rows]
    task = max(dict.fromkeys(tasks), key=tasks.count)
    block = [row for row in rows if row.task == task]
    same = {key: v for key, v in common_labels(block).items() if key not in common}
    bare = [
        replace(row, labels={k: v for k, v in row.labels.items() if k not in same}) for row in block
    ]
    where = f"With {words_of(same)}: " if same and len(block) < len(rows) else ""
    return where + comparison_headline(bare, False)


def _made_it(row: Row) -> bool:
    """Return whether the runs of a row are its method's own: zero-shot CLIP is in every run."""
    return all(run.choice("method") == row.labels["method"] for run in row.runs)


def _row(
    row: Row,
    style: str,
    section: Section,
    labels: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    method = row.labels["method"]
    known = method in METHODS
    cells = []
    for name in section.columns:
        cell = row.cells.get(name)
        text = cell_text(name, cell) if cell else "–"
        mean, _, std = text.partition(" ± ")
        cells.append(
            {
                "key": name,
                "mean": mean,
                "std": std,
                "mark": cell.mark if cell else "",
                "value": None if cell is None or math.isnan(cell.mean) else repr(cell.mean),
                "dots": seed_dots(cell.values, *ranges[name]) if cell else "",
                "seeds": _by_seed(cell.values) if cell else "",
            }
        )
    return {
        "style": style,
        "name": title(method),
        "page": method_page(method) if known else "",
        "labels": [row.labels[name] for name in labels if name != "method"],
        "model": row.model,
        "prompt": MODELS[row.model].split()[0],
        "kinds": " ".join(file_name(kind) for kind in METHODS[method].about.learns)
        if known
        else "",
        "seeds": len(row.seeds),
        "cells": cells,
    }


def _by_seed(values: Mapping[Any, float]) -> str:
    """Return ``seed 1: 73.21, seed 2: 72.08``; empty for one seed."""
    found = [f"seed {seed}: {v:.6g}" for seed, v in values.items() if not math.isnan(v)]
    return ", ".join(found) if len(found) > 1 else ""


def _range(rows: Sequence[Row], column: str) -> tuple[float, float]:
    """Return the least and the largest value of a column, over rows and seeds."""
    values = [v for row in rows if column in row.cells for v in row.cells[column].values.values()]
    values = [value for value in values if not math.isnan(value)]
    return (min(values), max(values)) if values else (math.nan, math.nan)


def _runs_of(row: Row, name: str, folder: Path) -> dict[str, Any]:
    """Return how each run of a row can be made again, and with what it was made."""
    return {
        "name": name,
        "runs": [
            {
                "seed": run.seed,
                "command": single_command(run.config),
                "made": made_with(run),
                "report": _report_of(run, folder),
            }
            for run in row.runs
        ],
    }


def made_with(run: Run) -> str:
    """Return the commit, the versions and the machine of a run, in a line."""
    config = run.config
    commit, _, changes = str(config.get("git_commit") or "").partition("+")
    words = [f"commit {commit[:10]}{' with changes' if changes else ''}"] if commit else []
    versions = config.get("versions") or {}
    words += [f"{name} {version}" for name, version in versions.items()]
    machine = config.get("machine") or {}
    words += [str(value) for value in machine.values()]
    return ", ".join(words)


def _report_of(run: Run, folder: Path) -> str:
    """Return the link to a run's own report, from the site's folder; empty where there is none."""
    path = run.path / "report.html"
    if not path.is_file():
        return ""
    relative = Path(os.path.relpath(path, folder.resolve())).as_posix()
    return "./" + quote(os.fsencode(relative))  # a name with a colon would be another scheme
