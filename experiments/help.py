"""What ``--help`` says of groups, choices and keys: the comments of conf/, which are the one
source."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments.settings import CONF, choices, composed, parse
from fedpgp.errors import FedPGPError, unknown

_KEY = re.compile(r"^( *)([\w.]+):(?: +(.*?))?(?: *(?<!\S)# (.*))?$")


def settings_as_flags(arguments: Sequence[str]) -> str | None:
    """Return what to write instead of the first ``--key value`` that is a setting's name; None
    without one.

    Args:
        arguments: of the command line.
    """
    if not any(argument.startswith("--") for argument in arguments):
        return None
    keys = _keys(composed())
    known = {key.rpartition(".")[2]: key for key in sorted(keys, key=lambda key: -key.count("."))}
    known |= {key: key for key in keys} | {group: group for group in choices()}
    for index, argument in enumerate(arguments):
        name, _, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not argument.startswith("--") or name not in known:
            continue
        after = arguments[index + 1] if index + 1 < len(arguments) else ""
        value = value or ("VALUE" if not after or "=" in after or after.startswith("-") else after)
        return f"{argument}: settings are written without dashes; write {known[name]}={value}"
    return None


def unknown_words(late: Sequence[str], arguments: Sequence[str]) -> str:
    """Return what to say of words that a command does not know, ``late`` of all its
    ``arguments``."""
    for word in late:  # not the others: --clients is an option of `deploy local`
        at = list(arguments).index(word)
        if said := settings_as_flags(arguments[at : at + 2]):
            return said
    return f"unrecognized arguments: {' '.join(late)}"


def explain(words: Sequence[str]) -> str:
    """Return the help of groups (``method``), choices (``method=fedotp``) and keys (``lr``).

    Raises:
        FedPGPError: no group, choice or key of that name.
    """
    parts = []
    for word in words:
        group, _, choice = word.partition("=")
        if group not in choices():
            parts.append(_key(group))
            continue
        if not choice:
            parts.append(_group(group))
            continue
        for name in (str(value) for value in _values(word)):
            if name not in choices()[group]:
                raise FedPGPError(unknown(group, name, choices()[group]))
            path = CONF / group / f"{name}.yaml"
            parts.append(_choice(path, f"{group}={name}", prefix_of(path, group)))
    return "\n\n".join(parts)


def explain_top() -> str:
    """Return the keys of conf/config.yaml, each with its value and its sentence."""
    return _choice(CONF / "config.yaml", "Keys", "", until="hydra")


def _values(word: str) -> list:
    override = parse([word])[0]
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _group(group: str) -> str:
    rows = [(name, _about(CONF / group / f"{name}.yaml")) for name in choices()[group]]
    lines = [f"{group}: its choices (python -m experiments.run --help {group}=CHOICE explains one)"]
    return "\n".join([*lines, *_rows(rows)])


def _key(word: str) -> str:
    """Return the lines of a key, by its whole name or the last part of it: its value and sentence,
    and the choices that have it so.

    Raises:
        FedPGPError: there is no such key.
    """
    files = {"": explained(CONF / "config.yaml")}
    for group, names in choices().items():
        for name in names:
            path = CONF / group / f"{name}.yaml"
            keys = explained(path, prefix_of(path, group))
            files[f"{group}={name}"] = [row for row in keys if _is_own(row[0], group)]
    found: dict[tuple[str, str], list[str]] = {}
    for choice, rows in files.items():
        for name, value, sentence in rows:
            if word in (name, name.rpartition(".")[2]):
                title = f"{name}: {value}" if value else name
                found.setdefault((title, sentence), []).append(choice)
    if not found:
        known = {name: None for rows in files.values() for name, _, _ in rows}
        near = unknown("setting", word, known)
        raise FedPGPError(near if "did you mean" in near else unknown("group", word, choices()))
    rows = [
        (title, f"{sentence} ({', '.join(of)})" if any(of) else sentence)
        for (title, sentence), of in found.items()
    ]
    return "\n".join(_rows(rows))


def _about(path: Path) -> str:
    """Return the first sentence of a file: the comment below its command."""
    comments = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package") or line.startswith("# python "):
            continue
        if not line.startswith("# "):
            break
        comments.append(line.removeprefix("# "))
    return " ".join(comments)


def _choice(path: Path, title: str, prefix: str, until: str = "") -> str:
    about = _about(path)
    rows = [
        (f"{name}: {value}" if value else name, sentence)
        for name, value, sentence in explained(path, prefix)
        if not until or name.split(".")[0] != until
    ]
    return "\n".join([title + (f": {about}" if about else ""), *_rows(rows)])


def prefix_of(path: Path, group: str) -> str:
    """Return what stands before the keys of a choice's file: nothing where it sets keys of other
    groups too, and has their whole names."""
    return "" if path.read_text().startswith("# @package _global_") else f"{group}."


def _is_own(key: str, group: str) -> bool:
    """Whether a key is a group's own; not the one that names the choice."""
    return key.startswith(f"{group}.") and key not in (f"{group}.name", f"{group}.scheme")


def explained(path: Path, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return the keys of a file of conf/: name, value as it stands there, sentence.

    Args:
        path: the file.
        prefix: before the names: ``method.``. Then the key that names the choice itself is left
            out.
    """
    parents, rows = [(-1, prefix)], []
    column = 0  # of the last key's comment; a comment below it, in the same column, continues it
    for line in path.read_text().splitlines():
        found = _KEY.match(line)
        if not found or line.lstrip().startswith("#"):
            if rows and column and line.startswith(" " * column + "# "):
                rows[-1] = (*rows[-1][:2], f"{rows[-1][2]} {line.strip()[2:]}")
            continue
        column = found.start(4) - 2 if found[4] else 0
        indent, key, value, sentence = len(found[1]), found[2], found[3] or "", found[4] or ""
        while parents[-1][0] >= indent:
            parents.pop()
        name = parents[-1][1] + key
        if key == "defaults" or (key in ("name", "scheme") and prefix):
            continue
        if not value:
            parents.append((indent, f"{name}."))
        if value or sentence:
            rows.append((name, value, sentence))
    return rows


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped to the terminal."""
    wide = max(60, shutil.get_terminal_size().columns)
    left = min(34, max((len(name) for name, _ in rows), default=0)) + 4
    lines = []
    for name, text in rows:
        head = f"  {name}"
        wrapped = textwrap.wrap(text, wide - left, break_on_hyphens=False) or [""]
        if len(head) >= left:
            lines.append(head)
            head = ""
        lines.append(f"{head:<{left}}{wrapped[0]}".rstrip())
        lines += [" " * left + part for part in wrapped[1:]]
    return lines


def _keys(config: dict, prefix: str = "") -> set[str]:
    names = set()
    for key, value in config.items():
        names.add(f"{prefix}{key}")
        if isinstance(value, dict):
            names |= _keys(value, f"{prefix}{key}.")
    return names
