"""The error a person sees."""

import difflib
from collections.abc import Iterable
from math import inf


class FedPGPError(Exception):
    """Something a person can mend: bad input, a missing file, a full disk. The message names
    it and says what to do."""


LARGEST = 2**63 - 1
"""Whole number: torch takes no larger one."""

SHOWN_BITS = 256
"""Of the largest whole number that a message shows."""

MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(OverflowError, RecursionError),
)
"""What reading a file raises that a crash or a person broke: rubbish, values of another type,
numbers without end, nesting without end."""


class MethodError(FedPGPError):
    """A fault in the code of a method; the message names its file and line."""


class RepeatingError(FedPGPError):
    """An error that the same run meets again when it is resumed as it is.

    Args:
        text: what went wrong.
        advice: what helps: ends with the command that resumes where that makes sense.
        resumable: whether a resume makes sense once the advice is followed.
    """

    def __init__(self, text: str, advice: str, resumable: bool = True):
        super().__init__(text)
        self.advice, self.resumable = advice, resumable


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: what it is, and the nearest names that do
    (all when none is near)."""
    valid = [str(v) for v in valid]
    lower = {v.lower(): v for v in valid}
    asked = str(name).lower()
    near = difflib.get_close_matches(asked, lower, n=6, cutoff=0.5)
    near = [
        lower[v]
        for v in sorted(near, key=lambda v: (_edits(asked, v), not v.startswith(asked)))[:3]
    ]
    if near:
        return f"unknown {kind} {str(name)!r}; did you mean {' or '.join(near)}?"
    return (
        f"unknown {kind} {str(name)!r}; choose one of {', '.join(valid)}"
        if valid
        else f"unknown {kind} {str(name)!r}"
    )


def _edits(one: str, other: str) -> int:
    """Letters to insert, delete or replace to make one word of the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def shown(value: object) -> str:
    """A value as it stands in a configuration: ``null``, ``true``, a text without quotes."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int) and value.bit_length() > SHOWN_BITS:  # Python may refuse to write it
        return f"(a number of {value.bit_length()} bits)"
    return repr(value) if value == "" else str(value)


def number_in_words(
    *,
    least: float = -inf,
    most: float = inf,
    above: float = -inf,
    below: float = inf,
    whole: bool = False,
    of: str = "",
) -> str:
    """What numbers are valid: ``a whole number, 1 or more``."""
    limits = [f"above {above:g}"] * (above > -inf) + [f"{least:g} or more"] * (least > -inf)
    limits += [f"at most {most:g}"] * (most < inf) + [f"below {below:g}"] * (below < inf)
    kind = ("a whole number" if whole else "a number") + (f" of {of}" if of else "")
    kind += "," * (whole and bool(limits))
    return f"{kind} {' and '.join(limits)}".strip()


def check_number(
    name: str,
    value: object,
    *,
    least: float = -inf,
    most: float = inf,
    above: float = -inf,
    below: float = inf,
    whole: bool = False,
    of: str = "",
    otherwise: str = "",
) -> None:
    """Refuses a setting that is no number, or outside its range.

    Args:
        name, value: of the setting.
        least, most, above, below: the range.
        whole: no fractions.
        of: its unit.
        otherwise: what else is valid, for the message: ``, or auto``.

    Raises:
        FedPGPError: naming the setting, its value and the range.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if number and least <= value <= most and above < value < below:  # NaN is in no range
        if not isinstance(value, int) or abs(value) <= LARGEST or whole and most < inf:
            return
        what = f"it is at most {LARGEST}" if whole else "write it with a decimal point or exponent"
        raise FedPGPError(f"{name}={shown(value)} cannot work; {what}")
    limits = {"least": least, "most": most, "above": above, "below": below}
    valid = number_in_words(**limits, whole=whole, of=of)
    raise FedPGPError(f"{name}={shown(value)} cannot work; it is {valid}{otherwise}")


def check_choice(name: str, value: object, valid: Iterable[str]) -> None:
    """Refuses a setting that is none of the valid words.

    Raises:
        FedPGPError: naming the setting, its value and the nearest valid ones.
    """
    valid = list(valid)
    if value not in valid:
        raise FedPGPError(unknown(f"value of {name}", value, valid))
