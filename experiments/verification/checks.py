"""What the checks of a submission share: how one ends, and how figures are compared and listed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from experiments.reporting.runs import Run, number
from experiments.settings import flatten
from fedpgp.errors import MALFORMED, FedPGPError

OK, FAILED, UNKNOWN = "ok", "failed", "not checked"
_SAME = 1e-9
"""Two figures computed of the same numbers differ by no more, relative to their size."""
_SHOWN = 4


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, ``ok``, ``failed`` or ``not checked``, and why."""

    name: str
    status: str
    said: str


class NotChecked(Exception):
    """Nothing can be said, and why."""


def made(name: str, check: Callable[[Run], str], run: Run) -> Check:
    """Return what a check says: its words, those of the FedPGPError that it fails with, or why it
    could not be made."""
    try:
        return Check(name, OK, check(run))
    except NotChecked as why:
        return Check(name, UNKNOWN, str(why))
    except FedPGPError as error:
        return Check(name, FAILED, str(error))
    except MALFORMED as error:
        return Check(name, FAILED, f"its files do not have the form of a run's ({error!r})")


def selection_of(run: Run) -> str:
    """Return the rule by which the reported rounds are chosen."""
    return run.config["protocol"].get("selection", "last")


def refuse_differences(expected: Mapping, recorded: Mapping, where: str, source: str) -> None:
    """Raise FedPGPError where two nested blocks of figures are not the same numbers."""
    one, two = flatten(_no_lists(expected)), flatten(_no_lists(recorded))
    for key in dict.fromkeys([*one, *two]):
        first, second = number(one.get(key)), number(two.get(key))
        if not alike(first, second):
            raise FedPGPError(
                f"{key} is {_written(second)} in {where}, and {_written(first)} by {source}"
            )


def alike(one: float, other: float, within: float = _SAME) -> bool:
    """Return whether two figures are the same, relative to their size, or both missing."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return abs(one - other) <= within * max(1.0, abs(one))


def listed(values) -> str:
    """Return values in a line, the middle of a long list left out."""
    words = [str(value) for value in (sorted(values) if isinstance(values, set) else values)]
    if len(words) > 2 * _SHOWN:
        words = [*words[:_SHOWN], "…", *words[-_SHOWN:]]
    return ", ".join(words) if words else "none"


def _no_lists(value: object) -> object:
    """Return a block with its matrices as mappings."""
    if isinstance(value, Mapping):
        return {key: _no_lists(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return {str(index): _no_lists(entry) for index, entry in enumerate(value)}
    return value


def _written(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.4f}"
