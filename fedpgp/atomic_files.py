"""Files that are either there whole or not there: how checkpoints, private states, caches
and reports are written."""

import contextlib
import ctypes
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from fedpgp.errors import FedPGPError


def write_atomically(
    path: Path,
    *parts: bytes | memoryview,
    flush: bool = True,
    private: bool = False,
    refusal: Callable[[Path, OSError], FedPGPError] | None = None,
) -> None:
    """Writes ``parts`` to ``path`` so that a crash at any moment leaves the old file or
    the new one, never a part.

    A temporary file in the same folder is written, flushed to the disk and renamed;
    then the folder is flushed.

    Args:
        path: the file; missing folders are made.
        parts: its whole content, one after the other.
        flush: False leaves flushing to a later :func:`flush_filesystem` (cheaper for many files; a
            power cut before it may lose them).
        private: the file, and folders that are missing, are for their owner alone, whatever the
            umask.
        refusal: makes the error's message; None is :func:`cannot_write`.

    Raises:
        FedPGPError: no space left, read-only or missing folder; the message names the path, and
            what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if private:
            _make_closed(path.parent)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=owner_only if private else None) as file:
            for part in parts:
                file.write(part)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        raise (refusal or cannot_write)(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def private_folder(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for their owner alone; closes
    one that is there already.

    Raises:
        FedPGPError: it cannot be made. That somebody else's folder cannot be closed is no error.
    """
    try:
        _make_closed(folder)
        if folder.stat().st_mode & 0o077:
            with contextlib.suppress(PermissionError):
                folder.chmod(0o700)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _make_closed(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        _make_closed(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise


def owner_only(name: str, flags: int) -> int:
    """An ``opener`` for :func:`open`: a file that it makes is its owner's alone."""
    return os.open(name, flags, 0o600)


def flush_filesystem(folder: Path) -> None:
    """Makes everything written to a folder's file system survive a power cut: one
    flush for many files."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
            if syncfs is None:
                os.sync()
            elif syncfs(handle):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(folder, error) from error


def flush_folder(folder: Path) -> None:
    """Makes renames and removals in a folder survive a power cut (where the file
    system can flush a folder)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_target(path: Path) -> None:
    """Refuses the name of a file that could not be written, before the work for it is done.

    Raises:
        FedPGPError: a folder, a place below a file, or in a folder that may not be written.
    """
    if path.is_dir():
        raise FedPGPError(f"cannot write {path}: it is a folder; name a file")
    above = next((folder for folder in path.parents if os.path.lexists(folder)), Path())
    if not above.is_dir():
        raise FedPGPError(f"cannot write {path}: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise FedPGPError(f"cannot write {path}: {above} may not be written")


def remove_leftovers(folder: Path, pattern: str = ".*.tmp") -> None:
    """Removes temporary files that killed writers left in a folder. Nobody may be writing there."""
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError):
            leftover.unlink()


def cannot_write(path: Path, error: OSError) -> FedPGPError:
    """The message for a failed write: what it was, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FedPGPError(
            f"no space left on the disk while writing {path}; free some and try again"
        )
    return FedPGPError(f"cannot write {path}: {error.strerror or error}")
