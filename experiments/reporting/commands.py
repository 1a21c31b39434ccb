"""The command that makes one run again, also where a sweep made it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from experiments.overrides import FOLDERS, RUN, again_command, override_of, typed
from experiments.reporting.tables import PARTS
from experiments.settings import choices, flatten, parse, swept_by
from fedpgp.errors import FedPGPError

_MANY = ("-m", "--multirun")
_AUTO = re.compile(r"(?<![\w./-])dtype=auto(?![\w,./-])")
"""The setting in any command that starts a run; neither a part of a path, nor one of several."""


def single_command(config: Mapping) -> str:
    """Return the command of one run, without a folder; empty where its configuration names none.

    Of a run that a sweep made, every setting that was swept gets the value that this run has; so
    does ``dtype=auto``, which another machine may decide otherwise.

    Args:
        config: of the run, with its ``command``.
    """
    started = _AUTO.sub(f"dtype={config.get('dtype')}", str(config.get("command") or ""))
    words = overrides_of(started)
    if words is None or not any(_many(word) for word in words):
        extended = config.get("extended")
        again = again_command(started, config.get("rounds") if extended else None)
        return " ".join([again, *(_part(config, words) if words is not None else ())])
    kept = [word for word in words if not (_many(word) or _of_this_machine(_key(word)))]
    swept = {_key(word): None for word in kept if _sweeps(word)}
    for word in kept:
        if _key(word) == "experiment":
            swept |= dict.fromkeys(_swept_by(word.partition("=")[2]))
    fixed = [word for word in kept if _key(word) not in swept]
    made = [*fixed, *(override_of(key, _value(config, key)) for key in swept)]
    return " ".join([shlex.join([*RUN.split(), *made]), *_part(config, made)])


def _many(word: str) -> bool:
    key, _, value = word.partition("=")
    return word in _MANY or (key == "hydra.mode" and value.upper() == "MULTIRUN")


def _of_this_machine(key: str) -> bool:
    """Return whether a setting says where and how a sweep is run, and nothing of a run."""
    return key in FOLDERS or key.startswith("hydra.")


def _part(config: Mapping, words: Sequence[str]) -> list[str]:
    """Return the setting that makes one part of a protocol of several runs, where the command is
    that of all of them."""
    named, flat = {_key(word) for word in words}, flatten(config)
    return [
        typed(key, flat[key]) for key in PARTS if flat.get(key) is not None and key not in named
    ]


def overrides_of(command: str) -> list[str] | None:
    """Return what a command gives to ``experiments.run``; None of another command."""
    if not command.startswith(RUN):
        return None
    return _words(command)[len(RUN.split()) :]


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an older version's
        return command.split()


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+") if "=" in word else ""


@lru_cache(maxsize=4096)
def _sweeps(word: str) -> bool:
    """Return whether an override has several values."""
    if "," not in word and "(" not in word:
        return False
    try:
        return any(override.is_sweep_override() for override in parse([word]))
    except FedPGPError:  # no override
        return False


@lru_cache(maxsize=256)
def _swept_by(experiment: str) -> tuple[str, ...]:
    return tuple(swept_by(experiment))


def _value(config: Mapping, key: str) -> Any:
    """Return the value that a run has of a setting; of a group, its choice."""
    chosen = config.get(key)
    if key in choices() and isinstance(chosen, Mapping):
        return chosen.get("name", chosen.get("scheme"))
    return flatten(config).get(key)
