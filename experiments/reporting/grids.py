"""Tables of texts, and the ways to print them: terminal, text, Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape
from rich.console import Console as RichConsole
from rich.table import Table as RichTable
from rich.text import Text

from experiments.spreadsheet import csv_text
from fedpgp.plain_text import printable


@dataclass(frozen=True)
class Grid:
    """A table ready to print: texts, each with its mark, without characters that are not seen.
    `breaks` are the rows that begin a new block, `numbers` what the cells sort by (NaN: by their
    text), `heading` stands above the table."""

    header: list[str]
    rows: list[list[tuple[str, str]]]
    texts: int
    breaks: frozenset[int] = frozenset()
    numbers: tuple[tuple[float, ...], ...] = ()
    heading: str = ""

    def __post_init__(self):
        def clean(text: str) -> str:
            return printable(text).replace("\n", " ")

        rows = [[(clean(text), mark) for text, mark in row] for row in self.rows]
        cleaned = {"header": list(map(clean, self.header)), "rows": rows}
        vars(self).update(cleaned, heading=clean(self.heading))


_BEST = "*"  # beside the best of a column, also where there is no bold
_SHORTENED = (24, 16, 12)  # characters of a label, from the first width that is tried


def text_width(grid: Grid) -> int:
    """Return how many columns of a terminal the table takes."""
    cells = [_with_star(grid, row) for row in grid.rows]
    widths = [
        max(len(name), *(len(row[k][0]) for row in cells)) for k, name in enumerate(grid.header)
    ]
    return sum(widths) + 2 * (len(widths) - 1)


def fit(
    grids: Sequence[Grid], width: int, droppable: Sequence[str]
) -> tuple[list[Grid], list[str]]:
    """Return the tables for so many columns of a terminal, and the columns that were left out of
    them.

    Droppable columns go first, in their order, then labels are shortened. What is
    too wide even then stays.
    """
    grids, dropped = list(grids), []
    for name in droppable:
        if all(text_width(grid) <= width for grid in grids):
            return grids, dropped
        if any(name in grid.header for grid in grids):
            grids, dropped = [_without(grid, name) for grid in grids], [*dropped, name]
    for most in _SHORTENED:
        if all(text_width(grid) <= width for grid in grids):
            break
        grids = [_shortened(grid, most) for grid in grids]
    return grids, dropped


def _without(grid: Grid, name: str) -> Grid:
    if name not in grid.header:
        return grid
    k = grid.header.index(name)
    return replace(
        grid,
        header=[*grid.header[:k], *grid.header[k + 1 :]],
        rows=[[*row[:k], *row[k + 1 :]] for row in grid.rows],
        numbers=tuple((*row[:k], *row[k + 1 :]) for row in grid.numbers),
    )


def _shortened(grid: Grid, most: int) -> Grid:
    def short(text: str) -> str:
        half = (most - 1) // 2
        return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"

    rows = [
        [(short(text), mark) for text, mark in row[: grid.texts]] + row[grid.texts :]
        for row in grid.rows
    ]
    return replace(grid, rows=rows)


def _with_star(grid: Grid, row: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the row with a star beside what is best; the others of such a column leave its place
    free."""
    starred = {k for other in grid.rows for k, (_, mark) in enumerate(other) if mark == "best"}
    return [
        (f"{text}{_BEST if mark == 'best' else ' '}" if k in starred else text, mark)
        for k, (text, mark) in enumerate(row)
    ]


def rich_table(grid: Grid) -> RichTable:
    """For a terminal: the best in bold with a star, the second underlined."""
    styles = {"best": "bold", "second": "underline", "": ""}
    table = RichTable(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    starred = {k for row in grid.rows for k, (_, mark) in enumerate(row) if mark == "best"}
    for index, name in enumerate(grid.header):
        left = index < grid.texts
        table.add_column(
            name + " " * (index in starred), justify="left" if left else "right", no_wrap=True
        )
    for index, row in enumerate(grid.rows):
        if index in grid.breaks:
            table.add_row()
        table.add_row(*(Text(text, style=styles[mark]) for text, mark in _with_star(grid, row)))
    return table


def as_text(grid: Grid) -> str:
    """Aligned columns without colours, as wide as they need to be; the best has a star."""
    file = io.StringIO()
    RichConsole(file=file, width=10_000, color_system=None, force_terminal=False).print(
        rich_table(grid)
    )
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join([grid.heading] * bool(grid.heading) + lines) + "\n"


def as_markdown(grid: Grid) -> str:
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    lines = [f"{_escape_markdown(grid.heading)}\n"] if grid.heading else []
    lines += ["| " + " | ".join(map(_escape_markdown, grid.header)) + " |"]
    lines.append(
        "|"
        + "|".join(" --- " if index < grid.texts else " ---: " for index in range(len(grid.header)))
        + "|"
    )
    for row in grid.rows:
        lines.append(
            "| "
            + " | ".join(marks[mark].format(_escape_markdown(text)) for text, mark in row)
            + " |"
        )
    return "\n".join(lines) + "\n"


def as_latex(grid: Grid) -> str:
    """Return a booktabs tabular."""
    marks = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    lines = [
        *([f"% {grid.heading}"] if grid.heading else []),
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * grid.texts}{'r' * (len(grid.header) - grid.texts)}}}",
    ]
    lines += [r"\toprule", " & ".join(map(_escape_latex, grid.header)) + r" \\", r"\midrule"]
    for index, row in enumerate(grid.rows):
        if index in grid.breaks:
            lines.append(r"\midrule")
        lines.append(" & ".join(marks[mark] % _escape_latex(text) for text, mark in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_html(grid: Grid) -> Markup:
    """Return a table element; spreads are set small, `data-v` holds the number that a cell sorts
    by."""
    marks = {"best": Markup("<b>{}</b>"), "second": Markup("<u>{}</u>"), "": Markup("{}")}
    head = Markup("").join(
        Markup("<th{}>{}</th>").format(Markup(' class="text"') if index < grid.texts else "", name)
        for index, name in enumerate(grid.header)
    )
    body = []
    for index, row in enumerate(grid.rows):
        cells = []
        for k, (text, mark) in enumerate(row):
            value, plus_minus, spread = text.partition(" ± ")
            shown = marks[mark].format(value) + (
                Markup(" <small>± {}</small>").format(spread) if plus_minus else ""
            )
            about = Markup(' class="text"') if k < grid.texts else ""
            if grid.numbers and not math.isnan(grid.numbers[index][k]):
                about += Markup(' data-v="{}"').format(repr(grid.numbers[index][k]))
            cells.append(
                Markup("<{0}{1}>{2}</{0}>").format("th" if k < grid.texts else "td", about, shown)
            )
        body.append(
            Markup("<tr{}>{}</tr>").format(
                Markup(' class="break"') if index in grid.breaks else "", Markup("").join(cells)
            )
        )
    return Markup(
        '<table class="sortable"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
    ).format(head, Markup("\n").join(body))


def grid_as_csv(grid: Grid) -> str:
    """Return a table as it is shown, as CSV."""
    return csv_text([grid.header, *([text for text, _ in row] for row in grid.rows)])


def _escape_markdown(text: str) -> str:
    return str(escape(text)).replace("|", r"\|").replace("_", r"\_").replace("*", r"\*")


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    "±": r"$\pm$",
    "–": "--",
}


def _escape_latex(text: str) -> str:
    return text.translate(str.maketrans(_LATEX))
