"""Checks a command line's overrides before anything is composed of them: a message names what
there is."""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Override, ValueType

from experiments.overrides import FOLDERS, typed
from experiments.settings import choices, composed, parse, swept_by
from fedpgp.errors import FedPGPError, unknown

MOST_COMBINATIONS = 64
"""Combinations of group choices in a sweep that are looked at before it starts."""


def check_overrides(arguments: Sequence[str], *, sweep: bool | None = None) -> None:
    """Refuse overrides that name a group, choice or key that does not exist, or that
    promise what cannot be kept.

    Args:
        arguments: the overrides.
        sweep: whether several values of a key are asked for (``-m``); None where a command has no
            sweeps.

    Raises:
        FedPGPError: with the nearest names that do exist.
    """
    overrides = parse(arguments)
    groups = choices()
    for override in overrides:
        if (
            override.is_sweep_override()
            and not sweep
            and not override.key_or_group.startswith("hydra")
        ):
            raise FedPGPError(_severalvalues_of(override, groups, sweep))
    if sweep:
        _check_sweep_folder(overrides)
        _check_swept_values(overrides, groups)
    chosen: dict[str, list[str]] = {}
    for override in overrides:
        key = override.key_or_group
        if key in groups:
            chosen[key] = [_text(value) for value in values_of(override, groups[key])]
            for value in chosen[key]:
                if value == "null":
                    example = groups[key][0]
                    raise FedPGPError(f"{key}=null: leave it out, or name one, such as {example}")
                if value not in groups[key]:
                    raise FedPGPError(unknown(key, value, groups[key]))
    keys = [
        o
        for o in overrides
        if o.key_or_group not in groups and not o.key_or_group.startswith("hydra")
    ]
    combinations = itertools.product(
        *([f"{group}={value}" for value in values] for group, values in chosen.items())
    )
    looked_at = list(itertools.islice(combinations, MOST_COMBINATIONS))
    nodes = [_nodes(composed(combination)) for combination in looked_at]
    for combination, known in zip(looked_at, nodes, strict=True):
        for override in keys:
            key = override.key_or_group
            if override.is_add() and key.split(".")[0] not in known:
                raise FedPGPError(_no_such_key(key, known, groups))
            if not override.is_add() and key not in known:
                if any(key in others for others in nodes):
                    raise FedPGPError(_not_of_all(key, combination))
                raise FedPGPError(_no_such_key(key, known, groups))


def in_each_job(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a sweep in which a setting that some choice of a swept group has for
    itself is one of its values.

    Hydra composes a configuration of what is not swept before it composes the jobs': there, the
    group has its default choice, which need not have the setting (``-m attack=label_flip,ipm
    attack.share=0.3``).
    """
    groups, fixed, found = choices(), [], []
    for argument in arguments:
        (override,) = parse([argument])
        if override.key_or_group in groups and not override.is_sweep_override():
            fixed.append(argument)
    known = _nodes(composed(fixed))
    for argument in arguments:
        (override,) = parse([argument])
        key, text = override.key_or_group, argument.partition("=")[2]
        plain = not (override.is_sweep_override() or override.is_add() or override.is_delete())
        if plain and text and "." in key and key not in known and not key.startswith("hydra"):
            argument = f"{key}=choice({text})"
        found.append(argument)
    return found


def _check_sweep_folder(overrides: Sequence[Override]) -> None:
    """Refuse a folder that hangs on what a sweep varies: the jobs would not find each other."""
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    for override in overrides:
        if override.key_or_group == "experiment":
            swept |= {key for value in values_of(override) for key in swept_by(_text(value))}
    swept -= {o.key_or_group for o in overrides if not o.is_sweep_override()}
    for override in overrides:
        if override.key_or_group not in FOLDERS:
            continue
        for key in re.findall(r"(?<!\\)\$\{([\w.]+)\}", _text(override.value())):
            if any(key == name or key.startswith(f"{name}.") for name in swept):
                raise FedPGPError(
                    f"{override.key_or_group} has ${{{key}}}, which the sweep varies: a sweep has "
                    f"one folder, and each job its own in it; leave ${{{key}}} out"
                )


def _check_swept_values(overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse what Hydra's sweeper does not know, a pattern without a choice, and a value twice:
    two jobs of one setting."""
    for override in overrides:
        if not override.is_sweep_override() or override.key_or_group.startswith("hydra"):
            continue
        if override.value_type is ValueType.INTERVAL_SWEEP:
            raise FedPGPError(
                f"{override.input_line} is an interval, which has no end of values; name some: "
                f"{override.key_or_group}=0.1,0.2, or range(START,STOP,STEP)"
            )
        among = groups.get(override.key_or_group, ())
        seen = [_text(value) for value in values_of(override, among)]
        if not seen:
            raise FedPGPError(
                f"{override.input_line} has no value"
                + (f"; choose among {', '.join(among)}" if among else ": glob is for groups")
            )
        if twice := sorted({value for value in seen if seen.count(value) > 1}):
            raise FedPGPError(
                f"{override.input_line} has {', '.join(twice)} twice: the jobs would be the same "
                "run; name each value once"
            )


def _nodes(config: Mapping, prefix: str = "") -> set[str]:
    """Every key of a nested mapping, inner nodes too."""
    names: set[str] = set()
    for key, value in config.items():
        names.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names |= _nodes(value, f"{prefix}{key}.")
    return names


def _not_of_all(key: str, combination: Sequence[str]) -> str:
    """Return the message for a setting that a choice of a sweep lacks, and another has."""
    group = key.split(".")[0]
    lacking = next((c for c in combination if c.startswith(f"{group}=")), " ".join(combination))
    return (
        f"{lacking} has no setting {key}, and other choices of this sweep have it: run {lacking} "
        f"without {key} in a sweep of its own"
    )


def _no_such_key(key: str, known: set[str], groups: Mapping[str, list[str]]) -> str:
    if key == "method.component":
        return "method.component needs method=component beside it"
    if key.startswith("method.") and "method.component" in known:
        own = key.removeprefix("method.").removeprefix("settings.")
        return f"unknown setting {key!r}; the component's own are +method.settings.{own}=..."
    head, dot, tail = key.rpartition(".")
    inside = sorted(name for name in known if name.startswith(f"{head}.")) if dot else []
    if head in groups and inside:
        return (
            unknown("setting", key, inside)
            + f" ({head} has: {', '.join(n.removeprefix(head + '.') for n in inside)})"
        )
    leaves = {name.rpartition(".")[2]: name for name in sorted(known)}
    if tail in leaves and leaves[tail] != key:
        return f"unknown setting {key!r}; did you mean {leaves[tail]}?"
    return unknown("setting", key, sorted(known | set(groups)))


def _severalvalues_of(
    override: Override, groups: Mapping[str, list[str]], sweep: bool | None
) -> str:
    """Return the message for ``seed=0,1`` where one value is needed."""
    key, text = override.key_or_group, override.input_line.partition("=")[2]
    what = (
        "a sweep is started with experiments.run -m"
        if sweep is None
        else "add -m to run each of them (a sweep)"
    )
    if key in groups:
        return f"{key}={text} has several values: {what}"
    a_list = shlex.quote(f"{key}=[{text}]")
    return (
        f"{key}={text} has several values: {what}; a list is {a_list}, one text {typed(key, text)}"
    )


def values_of(override: Override, among: Sequence[str] = ()) -> list:
    """Return the values that an override names, of a group those among its choices."""
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return override.value().filter(list(among))
    if override.is_sweep_override():
        return list(override.sweep_iterator())
    value = override.value()
    return value if isinstance(value, list) else [value]


def _text(value: object) -> str:
    return "null" if value is None else str(value)
