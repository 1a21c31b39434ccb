"""Tables over seeds: runs that differ only in their seed make one row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from experiments.reporting.formatting import (
    format_bytes,
    format_mean_and_std,
    format_megabytes,
    format_seconds,
)
from experiments.reporting.grids import Grid
from experiments.reporting.groups import Group, short_label
from experiments.reporting.runs import Run, number
from experiments.reporting.statistics import mean_std
from experiments.reporting.titles import title
from experiments.settings import flatten
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import CLIENT_FIGURES, COLUMNS, GROUPED, MODELS

COSTS = ("bytes", "seconds", "peak_rss_mb")
Key = TypeVar("Key")
PARTS = ("protocol.held_out",)
"""Options that a protocol runs through, a run each."""


@dataclass(frozen=True)
class Cell:
    """One figure of one row, a value a seed; `mark` is "best", "second" or empty."""

    values: dict[Any, float]
    mean: float
    std: float
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One group's figures under one model; `cells` by column, `runs` in the order of `seeds`."""

    labels: dict[str, str]
    model: str
    seeds: tuple
    task: tuple
    cells: dict[str, Cell]
    runs: tuple[Run, ...]

    def name(self, with_model: bool = False, without: Collection[str] = ()) -> str:
        """Return what tells the row from the others: `FedPGP, rank 8`; labels that all have alike
        may be left out."""
        labels = {
            key: value for key, value in self.labels.items() if value != "–" and key not in without
        }
        words = [
            title(value) if key == "method" else f"{key} {value}" for key, value in labels.items()
        ]
        return ", ".join(words) + (
            f" ({MODELS[self.model].split()[0]})"
            if with_model and self.model != "zero_shot"
            else ""
        )


def describe(run: Run) -> str:
    """`FedPGP, seed 1`."""
    return f"{title(run.choice('method'))}, seed {run.seed}"


def missing_clients(runs: Sequence[Run]) -> list[str]:
    """Return a note for each run whose figures are not of all its clients."""
    notes = []
    for run in runs:
        answered, clients = run.reported_clients
        if answered < clients:
            attacked = (run.summary or {}).get("attack")
            why = "the others attack or did not answer" if attacked else "the others did not answer"
            if not run.evaluates_all:
                why = "the others were not drawn (evaluate_clients), or did not answer"
            notes.append(
                f"{describe(run)}: figures of {answered} of {clients} clients, {why}; {run.path}"
            )
    return notes


def make_rows(groups: Sequence[Group], models: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Return a row a group and model, best and second marked among the rows of a task.

    A method with one prompt for all has one row where both its prompts are asked for, the
    global one. Zero-shot accuracy has nothing to do with the method, so a task has one such
    row, from all of its seeds.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(group.task for group in groups):
        together = [group for group in groups if group.task == task]
        block = []
        if "zero_shot" in models and not any(
            group.labels["method"] == "zero_shot" for group in together
        ):
            by_seed = {seed: run for group in together for seed, run in group.runs.items()}
            same = {
                k: v
                for k, v in together[0].labels.items()
                if all(g.labels[k] == v for g in together)
            }
            labels = {key: same.get(key, "–") for key in together[0].labels} | {
                "method": "zero_shot"
            }
            block.append(
                _row(labels, "zero_shot", by_seed, task, [c for c in columns if c not in COSTS])
            )
        for group in together:
            if group.labels["method"] == "zero_shot":
                block.append(_row(group.labels, "zero_shot", group.runs, task, columns))
                continue
            one_prompt = all(run.one_prompt for run in group.runs.values())
            for model in models:
                has_model = model != "zero_shot" and any(
                    run.accuracy[model] for run in group.runs.values()
                )
                if has_model and not (one_prompt and model == "personal" and "global" in models):
                    block.append(_row(group.labels, model, group.runs, task, columns))
        rows += _marked(block, columns)
    return rows


def mean_over(rows: Sequence[Row], label: str, columns: Sequence[str]) -> list[Row]:
    """Return rows that differ only in one label (`dataset`, `held_out`) as one: the mean over them,
    seed by seed.

    Raises FedPGPError when the rows have no such label.
    """
    names = [
        name
        for name in (rows[0].labels if rows else ())
        if name == label or name.endswith(f".{label}")
    ]
    if not names:
        raise FedPGPError(
            f"the runs do not differ in {label!r}; they do in: {', '.join(rows[0].labels)}"
        )
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        rest = tuple((key, value) for key, value in row.labels.items() if key != names[0])
        groups[rest, row.model].append(row)
    merged: list[Row] = []
    for (rest, model), members in groups.items():
        seeds = [seed for seed in members[0].seeds if all(seed in row.seeds for row in members)]
        cells = {}
        for column in columns:
            parts = [row.cells[column].values for row in members if column in row.cells]
            values = (
                {seed: sum(part[seed] for part in parts) / len(parts) for seed in seeds}
                if parts
                else {}
            )
            cells[column] = Cell(values, *mean_std(list(values.values())))
        task = tuple(
            (key, v)
            for key, v in members[0].task
            if label not in (short_label(key), *key.split("."))
        )
        runs = tuple(run for row in members for run in row.runs)
        merged.append(Row(dict(rest), model, tuple(seeds), task, cells, runs))
    tasks = list(dict.fromkeys(row.task for row in merged))
    return [
        row
        for task in tasks
        for row in _marked([row for row in merged if row.task == task], columns)
    ]


def expand_columns(asked: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Return the columns asked for: `domains` becomes one a domain, `datasets` one a data set; a
    name that no run has is refused."""
    inside = {
        many: [
            f"{many}.{name}"
            for run in runs
            for name in ((run.accuracy["personal"] or {}).get(many) or {})
        ]
        for many in GROUPED
    }
    columns = [column for name in asked for column in inside.get(name, [name])]
    known = {*COLUMNS, *COSTS} | {f"std_clients.{name}" for name in CLIENT_FIGURES}
    known |= {name for names in inside.values() for name in names} | _summary_numbers(runs)
    for name in columns:
        if name not in known:
            raise FedPGPError(
                f"no column {name!r}; there are: {', '.join(sorted(known | set(GROUPED)))}"
            )
    return list(dict.fromkeys(columns))


def result_grid(rows: Sequence[Row], columns: Sequence[str], models: Sequence[str]) -> Grid:
    """Return the table of `make_rows`; a column that no row has a number for is left out."""
    columns = shown_columns(rows, columns)
    names = list(rows[0].labels) if rows else ["method"]
    texts = names + (["prompt"] if len(models) > 1 else [])
    breaks = {i for i in range(1, len(rows)) if rows[i].task != rows[i - 1].task}
    body, numbers = [], []
    for row in rows:
        cells = [
            (title(row.labels[name]) if name == "method" else row.labels[name], "")
            for name in names
        ]
        if len(models) > 1:
            cells.append((MODELS[row.model].split()[0], ""))
        cells.append((str(len(row.seeds)), ""))
        for column in columns:
            cell = row.cells.get(column)
            cells.append((cell_text(column, cell), cell.mark) if cell else ("–", ""))
        body.append(cells)
        means = [row.cells[column].mean if column in row.cells else math.nan for column in columns]
        numbers.append(
            (*(as_number(text) for text, _ in cells[: len(texts)]), len(row.seeds), *means)
        )
    header = [*texts, "seeds", *map(column_name, columns)]
    return Grid(header, body, len(texts), frozenset(breaks), tuple(numbers))


def text_grids(rows: Sequence[Row], columns: Sequence[str], models: Sequence[str]) -> list[Grid]:
    """Return the table of `make_rows` for a terminal: one for each task, what its rows have in
    common as a line above it.

    Parts of one protocol (domains held out in turn) stay in one table.
    """
    blocks: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        blocks[tuple((key, v) for key, v in row.task if key not in PARTS)].append(row)
    if len(blocks) == 1:
        return [result_grid(rows, columns, models)]
    grids = []
    for block in blocks.values():
        same = common_labels(block)
        bare = [
            replace(
                row, labels={key: value for key, value in row.labels.items() if key not in same}
            )
            for row in block
        ]
        grids.append(replace(result_grid(bare, columns, models), heading=words_of(same)))
    return grids


def common_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Return the labels that all rows have alike. Zero-shot CLIP's row, which has none (`–`) of
    those that its task's other rows differ in, does not count."""
    one = next((row for row in rows if row.model != "zero_shot"), rows[0])
    return {
        key: value
        for key, value in one.labels.items()
        if key != "method"
        and all(
            row.labels[key] in (value, "–" if row.model == "zero_shot" else value) for row in rows
        )
    }


def words_of(labels: Mapping[str, str]) -> str:
    """`protocol personal, clients 6`."""
    return ", ".join(f"{key} {value}" for key, value in labels.items() if value != "–")


def is_part(row: Row) -> bool:
    """Return whether the row is one part of a protocol that runs several in turn (a domain held
    out)."""
    return any(row.labels.get(key, "–") != "–" for key in PARTS)


def over_parts(rows: Sequence[Row], columns: Sequence[str]) -> tuple[list[Row], str]:
    """Return the means over the parts of protocols that run several in turn, and words for it; no
    rows where nothing was run in parts."""
    parts = [row for row in rows if is_part(row)]
    label = next((key for key in PARTS if parts and key in parts[0].labels), "")
    different = {row.labels[label] for row in parts}
    if len(different) < 2:
        return [], ""
    return mean_over(parts, label, columns), f"mean over the {len(different)} domains held out"


def shown_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return the columns that some row has a number for."""
    return [
        c
        for c in columns
        if any(c in row.cells and not math.isnan(row.cells[c].mean) for row in rows)
    ]


def column_name(column: str) -> str:
    """Return what stands above a column."""
    names = {name: figure.title for name, figure in COLUMNS.items()} | {"peak_rss_mb": "memory"}
    many, _, name = column.partition(".")
    return names.get(column, name + GROUPED[many] if many in GROUPED else column)


def cell_text(column: str, cell: Cell) -> str:
    """`72.41 ± 0.53`; no spread for a single seed; a dash where the protocol has no such figure."""
    if column == "bytes" or column.endswith(("bytes_up", "bytes_down")):
        return format_bytes(cell.mean)
    if column.startswith("seconds"):
        return format_seconds(cell.mean)
    if column in ("peak_rss_mb", "peak_gpu_mb"):
        return format_megabytes(cell.mean)
    return format_mean_and_std(cell.mean, cell.std)


def best_and_second(means: Mapping[Key, float], column: str) -> dict[Key, str]:
    """Return the marks of the best and the second of some means of a figure; numbers that are
    printed alike share a mark, and costs and attackers' figures have none."""
    if column.split(".")[0] in (*COSTS, "std_clients", "attack", "audit") or "bytes" in column:
        return {}
    means = {key: round(mean, 2) for key, mean in means.items() if not math.isnan(mean)}
    lower_is_better = column in COLUMNS and COLUMNS[column].lower_is_better
    ranked = sorted(set(means.values()), reverse=not lower_is_better)
    if len(ranked) < 2:
        return {}
    marks = dict(zip(ranked, ("best", "second"), strict=False))
    return {key: marks[mean] for key, mean in means.items() if mean in marks}


# ---------------------------------------------------------------------------------------- the parts


def _row(
    labels: dict[str, str], model: str, by_seed: dict[Any, Run], task: tuple, columns: Sequence[str]
) -> Row:
    cells = {}
    for column in columns:
        values = {seed: _value(run, model, column) for seed, run in by_seed.items()}
        cells[column] = Cell(values, *mean_std(list(values.values())))
    return Row(labels, model, tuple(by_seed), task, cells, tuple(by_seed.values()))


def _value(run: Run, model: str, column: str) -> float:
    summary = run.summary or {}
    if column == "bytes":
        return number(summary.get("bytes_up")) + number(summary.get("bytes_down"))
    if column == "seconds":
        return number((summary.get("seconds") or {}).get("total"))
    if column.startswith("audit."):
        return number(flatten({"audit": run.audit}).get(column))
    if column.split(".")[0] in summary and column.split(".")[0] != "accuracy":
        return number(flatten(summary).get(column))
    return run.figure(model, column)


def _marked(block: list[Row], columns: Sequence[str]) -> list[Row]:
    """Return the rows with best and second marked; rows that print the same number share a mark;
    one row alone has none."""
    marks = {
        column: best_and_second(
            {i: row.cells[column].mean for i, row in enumerate(block) if column in row.cells},
            column,
        )
        for column in columns
    }
    return [
        replace(
            row,
            cells={
                c: replace(cell, mark=marks.get(c, {}).get(i, "")) for c, cell in row.cells.items()
            },
        )
        for i, row in enumerate(block)
    ]


def _summary_numbers(runs: Sequence[Run]) -> set[str]:
    """Return the numbers in summary.json beside the accuracies, such as `bytes_up`,
    `seconds.train`, `peak_rss_mb`, and those that an audit found (`audit.canaries.epsilon`)."""
    names: set[str] = set()
    for run in runs:
        beside = {key: value for key, value in (run.summary or {}).items() if key != "accuracy"}
        audit = {key: run.audit[key] for key in run.audit if key not in ("privacy", "settings")}
        flat = flatten({**beside, "audit": audit})
        names |= {key for key, value in flat.items() if not math.isnan(number(value))}
    return names


def as_number(text: str) -> float:
    """Return a label as a number; NaN for one that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
