"""A page a method: its equations, its source, how it stands against the official code, and its
place in every table."""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting.page import environment
from experiments.reporting.site_tables import FIRST, Section, page_title, rows_of
from experiments.reporting.tables import COSTS, Row, cell_text, column_name, words_of
from fedpgp.evaluation.figures import MODELS
from fedpgp.methods import METHODS
from fedpgp.methods.about import FAMILIES

_FEW = 2
"""A place among so few rows is neither the best nor the worst."""
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
"""A reference of a docstring."""
_JUDGED = ("unseen", "last", "hm3", "local")
"""Figures by the first of which, that a table has, a method gets its place there."""


def method_text(
    name: str, sections: Sequence[Section], pages: Mapping[str, Sequence[Section]]
) -> str:
    method = METHODS[name]
    module = sys.modules[method.__module__].__doc__ or ""
    summary, _, rest = module.strip().partition("\n\n")
    places = [place for section in sections for place in _places(name, section)]
    ranked = sorted(
        (place for place in places if place["of"] > _FEW),
        key=lambda place: (place["place"] / place["of"], -place["of"]),
    )
    return (
        environment()
        .get_template("site_method.html.j2")
        .render(
            about=method.about,
            summary=_ROLE.sub(r"\1", " ".join(summary.split())),
            equations=_ROLE.sub(r"\1", textwrap.dedent(rest)),
            family=FAMILIES[method.about.family],
            command=f"python -m experiments.run method={name}"
            + (f" model={method.about.model}" if method.about.model else ""),
            places=places,
            best=ranked[0] if ranked else None,
            worst=ranked[-1] if len(ranked) > 1 else None,
            pages=[(page, page_title(found)) for page, found in pages.items()],
        )
    )


def _places(name: str, section: Section) -> list[dict[str, Any]]:
    """Return each row of a method in a table: its figures, and its place among the rows that can be
    compared, by the first of :data:`_JUDGED` that it has."""
    found, common = [], section.common
    for row in rows_of(name, section):
        column = next((c for c in _JUDGED if _number(row, c) is not None), None)
        if column is None:
            continue
        others = [_number(other, column) for other in section.own if other.task == row.task]
        others = [value for value in others if value is not None]
        settings = {k: v for k, v in row.labels.items() if k != "method" and k not in common}
        figures = [
            f"{column_name(c)} {cell_text(c, row.cells[c])}"
            for c in (*FIRST, *COSTS)
            if _number(row, c) is not None
        ]
        found.append(
            {
                "table": section.experiment,
                "page": f"{section.page}#{section.anchor}",
                "where": page_title([section]),
                "prompt": MODELS[row.model].split()[0],
                "settings": words_of(settings),
                "figures": ", ".join(figures),
                "column": column_name(column),
                "place": 1 + sum(value > _number(row, column) for value in others),
                "of": len(others),
            }
        )
    return found


def _number(row: Row, column: str) -> float | None:
    cell = row.cells.get(column)
    return None if cell is None or math.isnan(cell.mean) else cell.mean
