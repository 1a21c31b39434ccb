"""The client that a command means: by its number, or by the name of its site."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from unicodedata import normalize

from fedpgp.errors import MALFORMED, FedPGPError, unknown
from fedpgp.plain_text import one_line

NAMES = ("name", "domain")
"""Keys of a client's row that name it, the first before the second."""

LONGEST_NUMBER = 18
"""Digits of a client's number."""


def asked_client(run: Path, text: str) -> int:
    """Return the logical client that ``--client`` means.

    A number is that of a client. Anything else is what its node calls itself (``client-name``), or
    the site that no other client has images of. A number that another client is called by is said
    on standard error.

    Args:
        run: the run's folder.
        text: of the command line.

    Raises:
        FedPGPError: no client has this name, or several have.
    """
    found = _called(run, text)
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= LONGEST_NUMBER:
        number = int(text)
        if others := [client for client in found if client != number]:
            print(
                f"note: --client {text} is the client of this number; the one of this name is "
                f"--client {others[0]}",
                file=sys.stderr,
            )
        return number
    if len(found) == 1:
        return found[0]
    if found:
        raise FedPGPError(
            f"{len(found)} clients are called {one_line(text)!r}; give a number: --client "
            + " or --client ".join(map(str, found[:3]))
        )
    names = sorted({name for row in _rows(run) for name in _names(row)})
    if not names:
        raise FedPGPError(
            f"--client {one_line(text)!r}: the clients of this run have no names; give a number, "
            "from 0"
        )
    raise FedPGPError(unknown("client", one_line(text), names))


def _called(run: Path, text: str) -> list[int]:
    """The clients of this name; of this domain, where none has the name."""
    rows, text = _rows(run), normalize("NFC", text)
    for key in NAMES:
        if found := [row["id"] for row in rows if normalize("NFC", row.get(key) or "") == text]:
            return found
    return []


def _names(row: Mapping) -> list[str]:
    return [one_line(row[key]) for key in NAMES if row.get(key)]


def _rows(run: Path) -> list[dict]:
    """The table of the clients, as far as it can be read."""
    try:
        rows = json.loads((run / "partition.json").read_text())["clients"]
        return [row for row in rows if isinstance(row["id"], int) and _texts(row)]
    except (OSError, *MALFORMED):
        return []


def _texts(row: Mapping) -> bool:
    return all(isinstance(row.get(key), str | None) for key in NAMES)
