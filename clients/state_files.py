"""Private states as files: a folder for each client, a file for each of its rounds."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedpgp.atomic_files import write_atomically
from fedpgp.digests import tensor_digest
from fedpgp.errors import FedPGPError

_STATE = re.compile(r"round_(\d+)\.safetensors")


class StateFiles:
    """Files ``client_NNNNN/round_NNNNN.safetensors``, with a checksum each.

    Args:
        folder: of all clients.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(
        self, client: int, server_round: int, tensors: dict[str, Tensor], committed: int
    ) -> None:
        """As :meth:`clients.private_state.PrivateStore.save`."""
        data = save(tensors, metadata={"sha256": _checksum(tensors)})
        path = self._path(client, server_round)
        write_atomically(path, data, flush=False, private=True)
        for old in outdated(self.rounds(client), server_round, committed):
            self._path(client, old).unlink(missing_ok=True)

    def load(self, client: int, server_round: int) -> dict[str, Tensor]:
        """As :meth:`clients.private_state.PrivateStore.load`, for a round from 1."""
        path = self._path(client, server_round)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise not_there(client, server_round, path) from None
        except (OSError, SafetensorError) as error:
            raise FedPGPError(
                f"the private state of client {client} cannot be read: {path} ({error})"
            ) from error
        if metadata.get("sha256") not in (None, _checksum(state)):  # an earlier version wrote none
            raise damaged(client, path)
        return state

    def rounds(self, client: int) -> list[int]:
        """Return the rounds of a client whose state is there."""
        folder = self._path(client, 0).parent
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return [int(match[1]) for name in names if (match := _STATE.fullmatch(name))]

    def _path(self, client: int, server_round: int) -> Path:
        return self.folder / f"client_{client:05d}" / f"round_{server_round:05d}.safetensors"


def outdated(rounds: list[int], server_round: int, committed: int) -> set[int]:
    """Return the rounds of a client that no checkpoint can ask for any more.

    Args:
        rounds: whose states are there.
        server_round: the round just trained.
        committed: the client's committed round before this one. It stays, as does the newest
            before it.
    """
    older = {r for r in rounds if r < server_round}
    return older - {committed, max((r for r in older if r < committed), default=0)}


def not_there(client: int, server_round: int, path: Path) -> FedPGPError:
    """Return the error of a state that is missing."""
    return FedPGPError(
        f"the private state of client {client} after round {server_round} is not there: {path}"
    )


def damaged(client: int, path: Path) -> FedPGPError:
    """Return the error of a state whose checksum is wrong."""
    return FedPGPError(
        f"the private state of client {client} is damaged: {path} (its checksum is wrong)"
    )


def _checksum(state: dict[str, Tensor]) -> str:
    return tensor_digest(" ".join(f"{name} {state[name].dtype}" for name in sorted(state)), state)
