"""``outputs/<experiment>/latest``: the newest run by a name that stays."""

import contextlib
import os
from pathlib import Path

LATEST = "latest"
"""Beside the runs of an experiment: a link to the newest, or a file with its name where
links are not possible."""


def link_latest(folder: Path) -> None:
    """Let ``latest`` beside a new default folder name it. Nothing depends on it: a
    failure is passed over."""
    link = folder.parent / LATEST
    temporary = link.with_name(f".{LATEST}.{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            temporary.write_text(f"{folder.name}\n")
        os.replace(temporary, link)
    with contextlib.suppress(OSError):
        temporary.unlink()  # where a folder of that name stands


def unlink_latest(folder: Path) -> None:
    """Let ``latest`` name the newest folder that is left when the one it names is gone."""
    link = folder.parent / LATEST
    if resolve_latest(link).name != folder.name or folder.exists():
        return
    with contextlib.suppress(OSError):
        left = [path for path in folder.parent.iterdir() if path.is_dir() and path != link]
        link.unlink()
        if left:
            link_latest(max(left))  # folders are named after the time


def resolve_latest(path: Path) -> Path:
    """Return the folder that ``.../latest`` names now, any other path as it is: while a command
    works in it, another run may become the newest."""
    if path.name != LATEST:
        return path
    if path.is_symlink():
        return path.resolve()
    if path.is_file():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return path.parent / path.read_text().strip()
    return path
