"""Files that several processes share: where caches live, all-or-nothing writing, locks that
die with their owner."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import FedPGPError
from fedpgp.locks import file_lock

CACHE_VARIABLE = "FEDPGP_CACHE"


def cache_folder(folder: str | Path | None = None) -> Path:
    """The folder of what can be computed again: ``folder``, else $FEDPGP_CACHE, else
    ~/.cache/fedpgp/features."""
    return Path(folder or os.environ.get(CACHE_VARIABLE) or "~/.cache/fedpgp/features").expanduser()


def write_cache(path: Path, *parts: bytes | memoryview, flush: bool = True) -> None:
    """Writes a cache file whole or not at all; ``flush`` as in
    :func:`fedpgp.atomic_files.write_atomically`.

    Raises:
        FedPGPError: no space left, or the folder cannot be written; says where, and how to move the
            cache.
    """
    write_atomically(
        path, *parts, flush=flush, refusal=lambda path, error: cannot_write(path.parent, error)
    )


def cannot_write(folder: Path, error: OSError, needed: int | None = None) -> FedPGPError:
    """The error of a cache that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        amount = f" ({needed / 1e6:.0f} MB are needed)" if needed else ""
        what = f"no space left for the cache in {folder}{amount}: free some"
    else:
        what = f"the cache in {folder} cannot be written ({error.strerror or error})"
    return FedPGPError(
        f"{what}, or move the cache with runtime.cache_dir=FOLDER or the environment variable "
        f"{CACHE_VARIABLE}"
    )


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of ``path``, once no other process has it.

    Where the file system has no locks, go on without: writing is atomic anyway, and the work is
    only done twice.

    Raises:
        Busy: another process has it, and ``wait`` is False.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    lock = path.with_name(f".{path.name}.lock")
    with file_lock(
        lock,
        optional=True,
        wait=None if wait else 0,
        busy=f"another process holds {lock}",
        refusal=lambda lock, error: cannot_write(lock.parent, error),
    ):
        yield
