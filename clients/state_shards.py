"""Private states in shards: an SQLite file for a thousand clients.

A folder a client is what a person reads best, and what very many clients make too many files of.
In a shard a state is a row: its tensors as safetensors, with a checksum. The file keeps SQLite's
write-ahead log: a process that is killed leaves each row old or new, and so does a power cut, which
loses no row that was flushed.

The log is memory that processes share. So all of them are on one machine, and the file on a disk of
its own; a cluster, and a disk on the network, have files instead.
"""

import contextlib
import errno
import os
import sqlite3
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clients.state_files import damaged, not_there, outdated
from fedpgp.atomic_files import cannot_write, flush_filesystem, owner_only, private_folder
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError
from fedpgp.file_systems import LOCAL, file_system

SHARDS = "shards"
"""Name of the folder; private states are in shards where it exists."""

SIZE = 1000
"""Clients of a file, and the most of a run that has a folder a client."""

MOST_OPEN = 128
"""Files that a process has open at once."""

LOG_PAGES = 256
"""Pages of 4 KiB in a file's log before they are moved into the file."""

BUSY = 60.0
"""Seconds to wait for another process that writes to the file."""

_TABLE = """
create table if not exists states (
    client integer, round integer, sha256 text, state blob, primary key (client, round)
) without rowid
"""


class StateShards:
    """Files ``clients_NNNNN.sqlite``, named by the first of their clients.

    A process keeps its files open; they are closed with the object.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[Path, sqlite3.Connection] = OrderedDict()
        weakref.finalize(self, _close, self._open)

    def exist(self) -> bool:
        """Return whether states are kept in shards."""
        return self.folder.is_dir()

    def make(self, clients: int) -> None:
        """Make the files of so many clients, where they are missing; nobody else may do so now.

        Raises:
            FedPGPError: a file cannot be written, or is damaged.
        """
        private_folder(self.folder)
        for first in range(0, clients, SIZE):
            path = self._path(first)
            with contextlib.suppress(FileExistsError):
                # SQLite gives its log the rights of the file.
                os.close(_made(path))
            with _named(path), contextlib.closing(_connected(path)) as connection:
                connection.execute("pragma journal_mode = wal")
                connection.execute(_TABLE)
                # A killed process leaves what it removed in the log, where another one has it open.
                connection.execute("pragma wal_checkpoint(truncate)")
        flush_filesystem(self.folder)

    def fold(self) -> None:
        """Move what is in the files' logs into the files, so that each is whole by itself."""
        for path in sorted(self.folder.glob("*.sqlite")):
            with _named(path), contextlib.closing(_connected(path)) as connection:
                connection.execute("pragma wal_checkpoint(truncate)")

    def save(
        self, client: int, server_round: int, tensors: dict[str, Tensor], committed: int
    ) -> None:
        """As :meth:`clients.private_state.PrivateStore.save`."""
        data = save(tensors)
        row = (client, server_round, _checksum(client, server_round, data), data)
        with self._connection(client) as connection, connection:
            connection.execute("insert or replace into states values (?, ?, ?, ?)", row)
            old = outdated(_rounds(connection, client), server_round, committed)
            which = [(client, each) for each in old]
            connection.executemany("delete from states where client = ? and round = ?", which)

    def load(self, client: int, server_round: int) -> dict[str, Tensor]:
        """As :meth:`clients.private_state.PrivateStore.load`, for a round from 1."""
        path = self._path(client)
        if not path.exists():
            raise not_there(client, server_round, path)
        find = "select sha256, state from states where client = ? and round = ?"
        with self._connection(client) as connection:
            row = connection.execute(find, (client, server_round)).fetchone()
        if row is None:
            raise not_there(client, server_round, path)
        if row[0] != _checksum(client, server_round, row[1]):
            raise damaged(client, path)
        try:
            return load(row[1])
        except SafetensorError as error:
            raise damaged(client, path) from error

    def rounds(self, client: int) -> list[int]:
        """Return the rounds of a client whose state is there."""
        with self._connection(client) as connection:
            return _rounds(connection, client)

    def _path(self, client: int) -> Path:
        return self.folder / f"clients_{client // SIZE * SIZE:05d}.sqlite"

    @contextlib.contextmanager
    def _connection(self, client: int) -> Iterator[sqlite3.Connection]:
        path = self._path(client)
        with _named(path):
            connection = self._open.pop(path, None) or _connected(path)
            self._open[path] = connection  # the last of them
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            yield connection


def shards_for(clients: int, folder: Path, *, new: bool, one_machine: bool) -> int:
    """Return of how many clients a run keeps the states in shards: all, or 0 for files.

    Args:
        clients: of the run.
        folder: of its private states.
        new: the run begins; another one stays with what it has.
        one_machine: all its processes are on this machine.

    Raises:
        FedPGPError: the run has shards, and they may not be written from here.
    """
    shards, kind = folder / SHARDS, file_system(folder)
    if not shards.is_dir():
        return clients if new and clients > SIZE and one_machine and kind in LOCAL else 0
    if not one_machine:
        raise FedPGPError(
            f"{shards} holds the clients' private states in SQLite files, which processes on "
            "several machines must not write; resume without runtime.address"
        )
    if kind is not None and kind not in LOCAL:
        raise FedPGPError(
            f"{shards} holds the clients' private states in SQLite files, which are not safe on a "
            f"disk of type {kind}; copy the run's folder to a disk of this machine and resume it "
            "there"
        )
    return clients


def _made(path: Path) -> int:
    try:
        return owner_only(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _connected(path: Path) -> sqlite3.Connection:
    """Return a connection to a file that exists; it only reads where it cannot write."""
    mode = "mode=rw"
    if not os.access(path.parent, os.W_OK):
        log = path.with_name(f"{path.name}-wal")
        mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY,
        isolation_level="IMMEDIATE",
        check_same_thread=False,
    )
    try:
        connection.execute("pragma synchronous = normal")
        connection.execute(f"pragma wal_autocheckpoint = {LOG_PAGES}")
        # A state that is removed is gone from the file, and from its log when that is truncated.
        connection.execute("pragma secure_delete = on")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _rounds(connection: sqlite3.Connection, client: int) -> list[int]:
    rows = connection.execute("select round from states where client = ?", (client,))
    return [server_round for (server_round,) in rows]


def _checksum(client: int, server_round: int, data: bytes) -> str:
    """Of a row: of whom it is, after which round, and its tensors."""
    return digest(f"{client} {server_round} ", data)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of an error of SQLite which file it is about, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise cannot_write(path, OSError(errno.ENOSPC, str(error))) from error
        if code == sqlite3.SQLITE_READONLY:
            raise cannot_write(path, OSError(errno.EROFS, str(error))) from error
        if code == sqlite3.SQLITE_BUSY:
            raise FedPGPError(
                f"{path} is locked by another program for over {BUSY:g} seconds; end that program "
                "and try again"
            ) from error
        first = path.stem.removeprefix("clients_")
        raise FedPGPError(
            f"the private states of {SIZE} clients, from client {int(first)} on, cannot be read: "
            f"{path} ({error}); restore this file and those beside it that begin with its name "
            "from a copy, or start anew with another run_dir"
        ) from error


def _close(connections: OrderedDict[Path, sqlite3.Connection]) -> None:
    for connection in connections.values():
        with contextlib.suppress(sqlite3.Error):
            connection.close()
