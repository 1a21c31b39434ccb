"""The error a person sees."""

import difflib
from collections.abc import Iterable


class FedPGPError(Exception):
    """Something a person can mend: bad input, a missing file, a full disk. The message names it and says what to do."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: what it is, and the nearest names that do (all when none is near)."""
    valid = [str(v) for v in valid]
    lower = {v.lower(): v for v in valid}
    near = [lower[v] for v in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
    if near:
        return f"unknown {kind} {str(name)!r}; did you mean {' or '.join(near)}?"
    return (
        f"unknown {kind} {str(name)!r}; choose one of {', '.join(valid)}" if valid else f"unknown {kind} {str(name)!r}"
    )
