"""CSV that a spreadsheet shows and never runs: texts that would be formulas are quoted,
numbers stay numbers."""

import csv
import io
import re
from collections.abc import Iterable

from fedpgp.plain_text import one_line

LONGEST = 200
"""Bytes of a text in a cell."""

_STARTS_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(
    r"[+-]?(\d[\d.,]*|\.\d+)([eE][+-]?\d+)?(\s*±\s*[\d.,]+)?\s*[*†]?|[+-]?(inf|nan)"
)


def csv_text(rows: Iterable[Iterable[object]], longest: int = LONGEST) -> str:
    """Return rows as CSV, each cell made safe by :func:`cell`."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(
        [cell(value, longest) for value in row] for row in rows
    )
    return file.getvalue()


def cell(value: object, longest: int = LONGEST) -> object:
    """Return a cell's value: a text in one line of at most ``longest`` bytes, after an
    apostrophe where a spreadsheet would take it for a formula.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value, longest)
    return f"'{text}" if text.startswith(_STARTS_FORMULA) and not _NUMBER.fullmatch(text) else text


def text_of(cell: str) -> str:
    """Return the text that :func:`cell` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS_FORMULA) else cell
