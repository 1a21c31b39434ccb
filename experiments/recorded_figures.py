"""What a run recorded of its figures, checked when it is read: a line of metrics.jsonl,
and summary.json."""

import json

KINDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "round": (int,),
    "clients": (int,),
    "all_clients": (int,),
    "drawn_clients": (int,),
    "dropped": (list, type(None)),
    "capped": (list, type(None)),
    "task": (int,),
    "tasks": (dict,),
}
"""Key -> the types of its value. (Of the other keys a wrong type is a missing figure.)"""
DIGITS = 18


def read_row(line: str | bytes) -> dict:
    """Return a line of metrics.jsonl.

    Raises:
        One of :data:`fedpgp.errors.MALFORMED`, which says what is wrong: no JSON, no object, a key
        that is missing or whose value has another type.
    """
    row = json.loads(line, parse_int=whole_number)
    for name, types in KINDS.items():
        if not isinstance(row.get(name, types[0]()), types):
            raise ValueError(f"{name} is {str(row[name])[:40]!r}")
    needed = ["kind", "round", *["clients"][: "all_clients" in row]]
    if missing := [name for name in needed if name not in row]:
        raise ValueError(f"it has no {', '.join(missing)}")
    for name in ("dropped", "capped"):
        if not all(isinstance(entry, dict) for entry in row.get(name) or []):
            raise ValueError(f"{name} is no list of objects")
    return row


def check_summary(summary: object) -> None:
    """Raise one of :data:`fedpgp.errors.MALFORMED` for what is no run's summary."""
    accuracy, seconds = summary["accuracy"], summary.get("seconds", {})
    blocks = {f"accuracy.{model}": block for model, block in accuracy.items()}
    blocks |= {name: summary.get(name) for name in ("privacy", "attack")}
    for name, block in blocks.items():
        if block is not None and not isinstance(block, dict):
            raise ValueError(f"{name} is {str(block)[:40]!r}")
    if not isinstance(summary.get("rounds", 0), int):
        raise ValueError(f"rounds is {str(summary['rounds'])[:40]!r}")
    for name, value in seconds.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{name} is {str(value)[:40]!r}")


def whole_number(digits: str) -> int:
    """Return an integer of a JSON file; ValueError for one that no figure can be."""
    if len(digits) > DIGITS:
        raise ValueError(f"{digits[:DIGITS]}... is no figure")
    return int(digits)
