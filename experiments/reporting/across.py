"""The values of one setting side by side: rows are the other settings, a column each value, a
table each figure (``report --across strategy``)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from experiments.reporting.grids import Grid
from experiments.reporting.tables import (
    Row,
    as_number,
    best_and_second,
    cell_text,
    column_name,
)
from experiments.reporting.titles import title
from fedpgp.errors import FedPGPError


def across_grids(
    rows: Sequence[Row], label: str, columns: Sequence[str], models: Sequence[str]
) -> list[Grid]:
    """Return one table a figure and model that some row has.

    Rows with the same value of one label, such as the share, stand together; the best of a row is
    marked.

    Args:
        rows: of ``make_rows``.
        label: a label that they differ in; settings that belong to it (``strategy.beta``) are no
            labels of the table.
        columns: figures.
        models: whose figures.

    Raises:
        FedPGPError: the rows have no such label.
    """
    if not any(label in row.labels for row in rows):
        known = ", ".join(rows[0].labels) if rows else "none"
        raise FedPGPError(f"the runs do not differ in {label!r}; they do in: {known}")
    return [
        _grid([row for row in rows if row.model == model], label, column, len(models) > 1)
        for model in models
        for column in columns
        if any(row.model == model and _has(row, column) for row in rows)
    ]


def _grid(rows: Sequence[Row], label: str, column: str, with_model: bool) -> Grid:
    names = [
        name
        for name in rows[0].labels
        if name != label
        and not name.startswith(f"{label}.")
        and len({row.labels[name] for row in rows}) > 1
    ]
    values = list(dict.fromkeys(row.labels[label] for row in rows))
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.labels[name] for name in names), {})[row.labels[label]] = row
    block = _block_label(found, names)
    keys = sorted(found, key=lambda key: as_number(key[block])) if names else list(found)
    body = []
    for key in keys:
        cells = {value: row.cells[column] for value, row in found[key].items() if _has(row, column)}
        marks = best_and_second({value: cell.mean for value, cell in cells.items()}, column)
        shown = [
            title(text) if name == "method" else text for name, text in zip(names, key, strict=True)
        ]
        body.append(
            [(text, "") for text in shown]
            + [
                (cell_text(column, cells[value]), marks.get(value, ""))
                if value in cells
                else ("–", "")
                for value in values
            ]
        )
    breaks = {i for i in range(1, len(keys)) if keys[i][block] != keys[i - 1][block]}
    breaks = breaks if len(names) > 1 else set()
    heading = column_name(column) + (f", {rows[0].model} prompt" if with_model else "")
    return Grid([*names, *values], body, len(names), frozenset(breaks), heading=heading)


def _block_label(found: Collection[tuple[str, ...]], names: Sequence[str]) -> int:
    """Return which label makes the blocks: the one with the fewest values, of several the last."""
    counts = [len({key[i] for key in found}) for i in range(len(names))]
    return len(names) - 1 - counts[::-1].index(min(counts)) if counts else 0


def _has(row: Row, column: str) -> bool:
    return column in row.cells and not math.isnan(row.cells[column].mean)
