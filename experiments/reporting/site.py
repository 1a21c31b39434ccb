"""The results site: static pages of what runs measured, without a server and without a network.

One page a protocol and data set, a table an experiment on it; one page a method; an index. A page
holds its own style and script. The drawings are those of the other pages (SVG made here): a chart
library would be larger than the whole site, and a page must load nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.reporting.formatting import format_bytes, format_seconds
from experiments.reporting.page import environment
from experiments.reporting.runs import Run
from experiments.reporting.site_methods import method_text
from experiments.reporting.site_tables import (
    Section,
    method_page,
    page_title,
    rows_of,
    sections_of,
    table_page,
)
from experiments.reporting.tables import Row, column_name
from experiments.reporting.titles import in_order
from fedpgp.atomic_files import write_atomically
from fedpgp.evaluation.figures import COLUMNS
from fedpgp.methods import METHODS
from fedpgp.methods.about import FAMILIES

_HEADLINES = ("local", "novel", "hm3", "unseen", "last")
"""Figures whose best method the index names."""


def write_site(runs: Sequence[Run], folder: Path, command: str, notes: Sequence[str]) -> list[Path]:
    """Write the pages; return them, the index first.

    Args:
        runs: finished ones.
        folder: of the site.
        command: that makes it again.
        notes: lines on what is not in it.

    Raises:
        FedPGPError: a page that cannot be written.
    """
    sections = sections_of(runs)
    pages: dict[str, list[Section]] = {}
    for section in sections:
        pages.setdefault(section.page, []).append(section)
    methods = [name for name in in_order() if any(rows_of(name, section) for section in sections)]
    texts = {"index.html": _index(pages, methods, command, notes)}
    texts |= {name: table_page(found, pages, folder) for name, found in pages.items()}
    texts |= {method_page(name): method_text(name, sections, pages) for name in methods}
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def _index(
    pages: Mapping[str, Sequence[Section]],
    methods: Sequence[str],
    command: str,
    notes: Sequence[str],
) -> str:
    found = [section for sections in pages.values() for section in sections]
    headings = [name for name in _HEADLINES if any(_best(section, name) for section in found)]
    tables = [
        {
            "page": page,
            "name": page_title(sections),
            "sections": [
                {
                    "anchor": section.anchor,
                    "name": section.experiment,
                    "methods": len({row.labels["method"] for row in section.rows}),
                    "seeds": max(len(row.seeds) for row in section.rows),
                    "best": [_best(section, name) for name in headings],
                }
                for section in sections
            ],
        }
        for page, sections in pages.items()
    ]
    listed = [
        {
            "page": method_page(name),
            "about": METHODS[name].about,
            "tables": sum(bool(rows_of(name, section)) for section in found),
        }
        for name in methods
    ]
    runs = [run for section in found for run in section.runs]
    return (
        environment()
        .get_template("site_index.html.j2")
        .render(
            tables=tables,
            headings=[column_name(name) for name in headings],
            methods=listed,
            families=FAMILIES,
            runs=len(runs),
            seeds=sorted({str(run.seed) for run in runs}),
            command=command,
            notes=notes,
        )
    )


def _best(section: Section, column: str) -> dict[str, str] | None:
    """Return the best row of a figure with what it costs; None where no row has one."""
    row = _best_row(section.own, column)
    if row is None:
        return None
    formats = {"bytes": format_bytes, "seconds": format_seconds}
    words = [format(row.cells[name].mean) for name, format in formats.items() if name in row.cells]
    spread = row.cells[column].std
    return {
        "name": row.name(False, section.common),
        "page": method_page(row.labels["method"]),
        "value": f"{row.cells[column].mean:.1f}",
        "std": "" if math.isnan(spread) else f"{spread:.1f}",
        "costs": ", ".join(word for word in words if word != "–"),
    }


def _best_row(rows: Sequence[Row], column: str) -> Row | None:
    having = [row for row in rows if column in row.cells and not math.isnan(row.cells[column].mean)]
    sign = 1 if column in COLUMNS and COLUMNS[column].lower_is_better else -1
    return min(having, key=lambda row: sign * row.cells[column].mean, default=None)
