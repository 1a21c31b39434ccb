"""Rows of tables and their comparisons as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.reporting.significance import Comparison
from experiments.reporting.tables import Cell, Row, shown_columns
from experiments.spreadsheet import csv_text


def as_csv(
    rows: Sequence[Row], columns: Sequence[str], comparisons: Sequence[Comparison] = ()
) -> str:
    """Numbers as they are, a row a group and model: mean, std (empty for one seed) and n of each
    column.

    With comparisons also, for each column, the row's mean difference from the best row of
    its task and the p value.
    """
    columns = shown_columns(rows, columns)
    against = {(id(one.other), one.column): one for one in comparisons}
    fields = ["mean", "std", "n"] + (["behind_best", "p"] if comparisons else [])
    labels = list(rows[0].labels) if rows else ["method"]
    lines = [
        [
            *labels,
            "prompt",
            "seeds",
            *(f"{column}_{field}" for column in columns for field in fields),
        ]
    ]
    for row in rows:
        line = [
            *("" if text == "–" else text for text in row.labels.values()),
            row.model,
            " ".join(map(str, row.seeds)),
        ]
        for column in columns:
            cell = row.cells.get(column, Cell({}, math.nan, math.nan))
            line += [
                _blank(cell.mean),
                _blank(cell.std),
                sum(not math.isnan(value) for value in cell.values.values()),
            ]
            if comparisons:
                one = against.get((id(row), column))
                line += [_blank(one.difference), _blank(one.p)] if one else ["", ""]
        lines.append(line)
    return csv_text(lines)


def _blank(value: float) -> str:
    return "" if math.isnan(value) else repr(round(value, 10))
