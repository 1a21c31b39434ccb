"""Words of a command line: paths that a person typed are read as they stand, and a command that is
printed can be typed again, whatever its paths hold. The quotes are those of three readers: Hydra,
the shell, and TOML (``flwr run``).
"""

import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from experiments.latest_link import LATEST, resolve_latest
from fedpgp.errors import FedPGPError

RUN = "python -m experiments.run"
LOCAL = "python -m experiments.deploy local"
FLOWER = "flwr run"

FOLDERS = ("run_dir", "resume")
"""Settings that are one path each."""
PATHS = (
    *FOLDERS,
    "init_from",
    "dataset.root",
    "runtime.cache_dir",
    "model.pretrained",
    "model.memory",
)
"""Settings that are paths; a sweep may have several of those that are not of :data:`FOLDERS`."""
TEXTS = ("experiment_name", "context_init")
"""Settings that are texts, also where YAML would read a number or a word of its own."""
_HOW_MANY = ("--clients", "--data")
_INTERPOLATION = "${"


# Reading. -----------------------------------------------------------------------------------------


def readable(arguments: Sequence[str], *, absolute: bool = False) -> list[str]:
    """Return arguments in which every path can be read by Hydra, with its ``~`` expanded.

    Hydra's grammar has no ``~``, letters beyond ASCII, or ``, = ( ) &`` in a value without
    quotes, which a person at a shell cannot know;
    ``resume=outputs/compare/method=fedpgp,seed=1`` is a path all the same. An interpolation
    (``${now:%Y-%m-%d}``, ``${seed}``) is left to Hydra; ``\\${`` is a path with these letters.
    A number is a text where the setting is one (``experiment_name=2026``).

    Args:
        arguments: as the shell gave them.
        absolute: paths get the working directory before them, for a process that has another one.
    """
    return [_readable(argument, absolute) for argument in arguments]


def given_path(arguments: Sequence[str], key: str) -> Path | None:
    """Return the path that a setting is given by arguments of :func:`readable`; None: it is given
    none."""
    overrides = [_parsed(word) for word in arguments if word.startswith(f"{key}=")]
    text = overrides[-1].value() if overrides and overrides[-1] else None
    return Path(text) if text else None


def user_path(text: str) -> Path:
    """Return a path of an option, with its ``~`` expanded."""
    return Path(text).expanduser()


def _readable(argument: str, absolute: bool) -> str:
    key, equals, text = argument.partition("=")
    plus, key = key[: len(key) - len(key.lstrip("+"))], key.lstrip("+")
    if key in TEXTS and text:
        return plus + _as_text(key, text)
    if not equals or key not in PATHS or not text:
        return argument
    override = _parsed(f"{key}={text}")
    if override is not None and override.is_sweep_override():
        if key not in FOLDERS:
            return argument
    elif override is not None:
        value = override.value()
        if value is None:
            return argument
        if isinstance(value, str):
            text = value
    path = os.path.expanduser(text)
    if _INTERPOLATION in path:
        if absolute and not path.startswith(_INTERPOLATION):
            path = os.path.abspath(path)
        return f"{plus}{key}={_quoted(path)}"
    if key in ("resume", "init_from") and path.rstrip("/").endswith(LATEST):
        path = str(resolve_latest(Path(path)))
    if absolute and (key != "model.pretrained" or os.path.exists(path)):
        path = os.path.abspath(path)
    return plus + override_of(key, path)


def _as_text(key: str, text: str) -> str:
    override = _parsed(f"{key}={text}")
    if override is None or override.is_sweep_override():
        return f"{key}={text}"
    value = override.value()
    return override_of(key, text) if isinstance(value, bool | int | float) else f"{key}={text}"


# Writing. -----------------------------------------------------------------------------------------


def override_of(key: str, value: object) -> str:
    """``key=value`` that Hydra reads as just this number or text; with quotes only where it needs
    them."""
    if isinstance(value, int | float):
        return f"{key}={value}"
    text = str(value)
    plain = _parsed(f"{key}={text}")
    if (
        plain is not None
        and not plain.is_sweep_override()
        and plain.value() == text
        and _INTERPOLATION not in text
    ):
        return f"{key}={text}"
    literal = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)  # no interpolation
    return f"{key}={_quoted(literal)}"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def typed(key: str, value: object) -> str:
    """Return an override as it is typed at a shell: ``resume=RUN`` in an error's advice."""
    return shlex.quote(override_of(key, value))


def run_command(**overrides: object) -> str:
    """Return the command that runs an experiment with these settings."""
    return " ".join([RUN, *(typed(key, value) for key, value in overrides.items())])


def resume_command(started: str, run: Path, key: str = "resume", **more: object) -> str:
    """Return the command that resumes a run, or starts another of its kind.

    Args:
        started: the command that the run was started with: of a simulation, or of a deployment.
        run: its folder.
        key: ``resume``, or ``init_from``.
        more: further settings.
    """
    words = [override_of(name, value) for name, value in {key: run, **more}.items()]
    if started.startswith(LOCAL):
        return shlex.join([*LOCAL.split(), *_sites(started), *words])
    if started.startswith(FLOWER):
        return flower_command(words)
    return shlex.join([*RUN.split(), *words])


def again_command(started: str, rounds: int | None = None) -> str:
    """Return the command that makes a run again: the one that started it, without the folder that
    it has.

    Args:
        started: the command that started it.
        rounds: of a finished run that was given more rounds since; else None.
    """
    try:
        words = shlex.split(started)
        if started.startswith(FLOWER):
            if rounds is None:
                return started
            asked = shlex.split(tomllib.loads(words[-1])["overrides"])
            return flower_command(_with_rounds(asked, rounds))
    except (ValueError, KeyError, IndexError):  # an older version's
        return started
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in FOLDERS]
    return shlex.join(kept if rounds is None else _with_rounds(kept, rounds))


def _with_rounds(words: Sequence[str], rounds: int) -> list[str]:
    return [*(word for word in words if word.partition("=")[0] != "rounds"), f"rounds={rounds}"]


def flower_command(overrides: Sequence[str]) -> str:
    """Return the command that runs an experiment on a Flower federation, the one that ``flwr``
    takes without a name."""
    return (
        f"{FLOWER} . --stream --run-config "
        f"{shlex.quote(f'overrides={toml(shlex.join(overrides))}')}"
    )


def toml(value: object) -> str:
    """Return a value as TOML has it, a text between quotes and with none inside: of the pairs
    ``name="text"`` on its command line Flower looks for the next quote.

    Raises:
        FedPGPError: a text that is no Unicode (the name of a file may be none).
    """
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FedPGPError(
            f"{value!r} is no UTF-8, and Flower takes nothing else; rename it"
        ) from None
    escaped = {"\\": "\\\\", '"': "\\u0022", "\x7f": "\\u007f"} | {
        chr(i): f"\\u{i:04x}" for i in range(32)
    }
    return '"' + "".join(escaped.get(letter, letter) for letter in value) + '"'


def _sites(started: str) -> list[str]:
    """``--clients N`` or ``--data FOLDER`` of the command that started a deployment on this
    machine."""
    words = shlex.split(started)
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(tuple(f"{option}=" for option in _HOW_MANY)):
            found.append(word)
        elif word in _HOW_MANY:
            found += [word, following]
    return found


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
