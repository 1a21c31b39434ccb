"""Text that somebody else wrote (a client, a file's name), made safe to print: no terminal
escapes, no forged lines."""

import re
import unicodedata
from collections.abc import Mapping

LONGEST = 1000
"""Bytes of a text that are kept."""

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?|\x9b[0-?]*[ -/]*[@-~]"
)
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of characters that move the cursor, turn the direction of text, or show
nothing."""


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return the text as one line without terminal escapes and control characters, cut to
    ``longest`` bytes of UTF-8.

    A longer text ends with "…".
    """
    if len(text) <= longest and text.isascii() and text.isprintable():  # most are; ten times faster
        return text.strip()
    kept = printable(text[: 4 * longest]).replace("\n", " ").strip()
    data = kept.encode()
    if len(data) <= longest and len(text) <= 4 * longest:
        return kept
    return data[: longest - 3].decode(errors="ignore").rstrip() + "…"


def printable(text: str) -> str:
    """Return the text without terminal escapes and control characters; it may have several
    lines."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " "))
    return "".join(c for c in text if c == "\n" or c.isascii() and c.isprintable() or _shown(c))


def written_out(path: object) -> str:
    """Return a path as it can be printed and written to a file: bytes that are not UTF-8
    and characters that are not seen stand as escapes (``\\xe9``, ``\\u202e``), so that the
    file can still be found."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if _shown(c) else c.encode("unicode_escape").decode() for c in text)


def indented(text: object) -> str:
    """Return what :func:`printable` leaves of a text, each line after the first indented: none
    stands where a line of the program's own would.
    """
    return printable(str(text)).rstrip("\n").replace("\n", "\n  ")


def called(row: Mapping) -> str:
    """A client as a person is told of it: its number, and its name where its node has told one."""
    return f"client {row['id']} ({row['name']})" if row.get("name") else f"client {row['id']}"


def _shown(character: str) -> bool:
    # The zero-width joiner belongs to emoji and to several scripts.
    return character == "\u200d" or unicodedata.category(character) not in _UNSEEN
