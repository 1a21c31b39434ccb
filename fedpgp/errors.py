"""The error a person sees."""

import difflib
from collections.abc import Iterable


class FedPGPError(Exception):
    """Something a person can mend: bad input, a missing file, a full disk. The message names it and says what to do."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: what it is, and the nearest names that do."""
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    return f"unknown {kind} {name!r}; " + (
        f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"
    )
