"""The private state of clients: tensors that never leave the machine they were learned on.

One for each (client, round), written atomically, with a checksum, readable by its owner alone: a
file (:mod:`clients.state_files`), or a row of a shard where a simulation has very many clients
(:mod:`clients.state_shards`). The server keeps count of the round a client's update last entered
the average (its *committed* round) and tells the client; the client loads exactly that one. So an
update that was lost on the way, came too late, or belongs to a round that a killed server never
finished is never built upon.

Only one attempt at a run owns a folder. An attempt has a number, one more each time the run is
started or resumed; the highest one that was claimed owns the folder, and workers left over from an
earlier attempt can no longer write. A file lock closes the gap between looking and writing; the
system drops it when its holder dies, so it is never stale.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from clients.messages import Job
from clients.state_files import StateFiles
from clients.state_shards import SHARDS, StateShards
from fedpgp.atomic_files import (
    cannot_write,
    flush_filesystem,
    private_folder,
    remove_leftovers,
    write_atomically,
)
from fedpgp.digests import digest
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.locks import file_lock


class Superseded(FedPGPError):
    """A newer attempt at the run owns the folder."""


class PrivateStore:
    """A folder of private states.

    Args:
        folder: ``RUN_DIR/private`` in a simulation (every worker sees it), the node's
            own disk in a deployment.
        run: the run's id; a folder belongs to one run.
        attempt: the number of this attempt.
    """

    def __init__(self, folder: Path | str, run: str, attempt: int):
        self.folder, self.run, self.attempt = Path(folder), run, attempt
        self._files, self._shards = StateFiles(self.folder), StateShards(self.folder / SHARDS)

    def claim(self, in_shards: int = 0) -> None:
        """Take the folder for this attempt, unless a newer one owns it; close it to other users.

        Args:
            in_shards: number of clients whose states are kept in shards
                (:func:`clients.state_shards.shards_for`); 0: nothing is changed in how they are.

        Raises:
            Superseded: a newer attempt owns it.
            FedPGPError: the folder belongs to another run, or cannot be written.
        """
        private_folder(self.folder)  # one of an earlier version was open
        with self._locked():
            if self.attempt > self._owner():
                record = {"run": self.run, "attempt": self.attempt}
                write_atomically(
                    self.folder / "attempt.json", json.dumps(record).encode(), private=True
                )
                remove_leftovers(self.folder, "**/.*.tmp")  # nobody writes now
            if in_shards:
                self._shards.make(in_shards)

    def owned(self) -> bool:
        """True as long as no newer attempt has claimed the folder."""
        return _claimed(self.folder)[1] <= self.attempt

    def give_configuration(self, text: str) -> str:
        """Keep the run's configuration (JSON text) beside the states; return its name in
        messages: the beginning of its SHA-256.
        """
        name = digest(text)[:16]
        write_atomically(self.folder / f"config_{name}.json", text.encode(), private=True)
        return name

    def configuration(self, name: str) -> str:
        """Return the configuration of this name.

        Raises:
            FedPGPError: it was never given, or is damaged.
        """
        path = self.folder / f"config_{name}.json"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FedPGPError(
                f"the run's configuration cannot be read: {path} ({error.strerror})"
            ) from error
        if digest(data)[:16] != name:
            raise FedPGPError(f"the run's configuration is damaged: {path}")
        return data.decode()

    def save(
        self, client: int, server_round: int, state: dict[str, Tensor], committed: int
    ) -> None:
        """Write a client's state after a round, and remove what no checkpoint can ask for any
        more.

        It is safe from a crash of the process at once, and from a power cut after :meth:`flush`:
        call it before telling the server.

        Args:
            client: logical client.
            server_round: the round just trained, from 1.
            state: name -> tensor.
            committed: the client's committed round before this one (0: none). It is kept, as is the
                newest before it: the last two checkpoints of the server need them.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with self._locked(shared=True):
            self._owner()
            self._states.save(client, server_round, tensors, committed)

    def flush(self) -> None:
        """Make all that was saved survive a power cut."""
        flush_filesystem(self.folder)

    def load(self, client: int, server_round: int) -> dict[str, Tensor] | None:
        """Return a client's state as it was after ``server_round``; None for round 0, when there is
        none yet.

        Raises:
            FedPGPError: the state is not there or cannot be read.
        """
        return self._states.load(client, server_round) if server_round else None

    def states(self, client: int) -> dict[int, dict[str, Tensor]]:
        """Return all states of a client that are there: round -> state.

        Raises:
            FedPGPError: one of them cannot be read.
        """
        return {r: self.load(client, r) for r in sorted(self._states.rounds(client))}

    def tidy(self) -> None:
        """Leave the states such that each file is whole by itself, for who copies them.

        Raises:
            FedPGPError: one of them is damaged, or cannot be written.
        """
        self._shards.fold()

    @property
    def _states(self) -> StateFiles | StateShards:
        return self._shards if self._shards.exist() else self._files

    def _owner(self) -> int:
        run, attempt = _claimed(self.folder)
        if run is not None and run != self.run:
            raise FedPGPError(
                f"{self.folder} holds the private states of another run; choose another folder"
            )
        if attempt > self.attempt:
            raise Superseded(
                f"{self.folder} is owned by a newer attempt at this run; this one has to stop"
            )
        return attempt

    def _locked(self, shared: bool = False) -> AbstractContextManager[None]:
        def refusal(path: Path, error: OSError) -> FedPGPError:
            return cannot_write(path.parent, error)

        return file_lock(self.folder / ".lock", shared=shared, private=True, refusal=refusal)


def owner(folder: Path) -> tuple[str | None, int]:
    """Return who owns a folder of private states: (run id, attempt), (None, 0) when nobody does
    yet.

    In a folder that a run has used and whose record was lost, the attempt is the seconds since the
    epoch: more than anybody ever counted to, so that the next one is the highest on every machine
    that knows the last.

    Raises:
        FedPGPError: the record cannot be read.
    """
    run, attempt = _claimed(folder)
    if run is None and any(folder.glob("config_*.json")):
        attempt = int(time.time())
    return run, attempt


def supersede_workers(folder: Path, job: Job, warn: Callable[[str], None]) -> None:
    """End the work that is still under way at a run: a newer attempt's claim does
    (:mod:`clients.watchdog`).

    Args:
        folder: of the private states.
        job: of the attempt that is over.
        warn: told when the claim cannot be written.
    """
    try:
        PrivateStore(folder, job.run, job.attempt + 1).claim()
    except FedPGPError as error:
        warn(str(error))


def _claimed(folder: Path) -> tuple[str | None, int]:
    path = folder / "attempt.json"
    try:
        record = json.loads(path.read_bytes())
        return str(record["run"]), int(record["attempt"])
    except FileNotFoundError:
        return None, 0
    except OSError as error:
        raise FedPGPError(f"{path} cannot be read: {error.strerror or error}") from error
    except MALFORMED as error:
        raise FedPGPError(
            f"{path} is damaged ({error}); remove it and resume with resume=: nothing is lost"
        ) from error


def finite(state: dict[str, Tensor]) -> bool:
    """True when every floating-point tensor of a state is finite."""
    return all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
