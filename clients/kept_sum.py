"""What a client keeps between the steps of a secure sum, and of sums before: in a file of its own,
which its owner alone can read, or in memory where the server is in the same process."""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.secure_sum import Participant, Quantiser

NOTHING = np.zeros(0, np.uint32)
FOLDER = "secure_sum"
"""Below the private states."""


@dataclass
class Kept:
    """Of one client.

    Attributes:
        server_round: of the sum.
        participant: its keys and shares.
        quantiser: of the sum.
        vector: its update as integers, from the third step on with its noise.
        made_of: digest of what the vector was made of.
        noise: deviation of the noise in the vector, in steps of the quantiser.
        masked: the vector under masks as it is sent, from the third step to the fourth.
        asked: step -> digest of what it was asked.
        shares: its reply in the second step, until the third; empty: it was not asked.
        company: the others of the first sum in which the vector was, with noise and under masks,
            where it knows them all; None: it was in none.
        given: :attr:`made_of` of each sum whose fourth step it answered -> the survivors, where it
            knows them all; else none.
    """

    server_round: int
    participant: Participant
    quantiser: Quantiser
    vector: np.ndarray
    made_of: str = ""
    noise: float = 0.0
    masked: bytes = b""
    asked: dict[str, str] = field(default_factory=dict)
    shares: dict[str, bytes] = field(default_factory=dict)
    company: list[int] | None = None
    given: dict[str, list[int]] = field(default_factory=dict)

    def parts(self) -> tuple[bytes, ...]:
        """Return it as the parts of a file: the length of the first, JSON, both vectors."""
        about = {
            "server_round": self.server_round,
            "participant": self.participant.saved(),
            "quantiser": asdict(self.quantiser),
            "made_of": self.made_of,
            "noise": self.noise,
            "numbers": len(self.vector),
            "asked": self.asked,
            "company": self.company,
            "given": self.given,
        }
        if self.shares:
            about["replied"] = {name: value.hex() for name, value in self.shares.items()}
        header = json.dumps(about).encode()
        vector = self.vector.astype("<u4", copy=False).tobytes()
        return len(header).to_bytes(8), header, vector, self.masked

    @classmethod
    def of(cls, data: bytes) -> "Kept":
        """From the joined :meth:`parts`."""
        end = 8 + int.from_bytes(data[:8])
        about = json.loads(data[8:end])
        numbers = about.pop("numbers", (len(data) - end) // 4)  # an earlier version kept one vector
        vector = np.frombuffer(data[end : end + 4 * numbers], "<u4").astype(np.uint32)
        about |= {"vector": vector, "masked": data[end + 4 * numbers :]}
        about["participant"] = Participant.restored(about["participant"])
        about["quantiser"] = Quantiser(**about["quantiser"])
        about["shares"] = {n: bytes.fromhex(v) for n, v in about.get("replied", {}).items()}
        return cls(**{name: about[name] for name in _FIELDS if name in about})


class KeptSums(Protocol):
    """Where clients keep it."""

    def load(self, client: int) -> Kept | None:
        """Return what a client keeps of its last sum; None: it took part in none."""

    def save(self, kept: Kept) -> None:
        """Keep it, in the place of what its client had."""


class KeptInFiles:
    """A file a client.

    Args:
        folder: of the private states.
        flush: whether a file survives a power cut.
    """

    def __init__(self, folder: Path, *, flush: bool):
        self._folder, self._flush = folder / FOLDER, flush

    def load(self, client: int) -> Kept | None:
        """As :meth:`KeptSums.load`.

        Raises:
            FedPGPError: the file cannot be read.
        """
        path = self._path(client)
        try:
            return Kept.of(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, *MALFORMED) as error:
            raise FedPGPError(f"{path} cannot be read ({error})") from error

    def save(self, kept: Kept) -> None:
        """As :meth:`KeptSums.save`.

        Raises:
            FedPGPError: the file cannot be written.
        """
        path = self._path(kept.participant.client)
        write_atomically(path, *kept.parts(), flush=self._flush, private=True)

    def _path(self, client: int) -> Path:
        return self._folder / f"client_{client:05d}.bin"


class KeptInMemory:
    """Of the clients of one process and one round, for a server that ends with it: whose sum is
    lost with it asks for the round again, under other keys. What clients kept of a round before is
    dropped with the first of the next: nothing of it is asked for any more."""

    def __init__(self) -> None:
        self._round = 0
        self._kept: dict[int, Kept] = {}

    def load(self, client: int) -> Kept | None:
        """As :meth:`KeptSums.load`."""
        return self._kept.get(client)

    def save(self, kept: Kept) -> None:
        """As :meth:`KeptSums.save`."""
        if kept.server_round != self._round:
            self._round, self._kept = kept.server_round, {}
        self._kept[kept.participant.client] = kept


@lru_cache(maxsize=1)
def kept_in_memory(folder: Path, run: str, attempt: int) -> KeptInMemory:
    """Return that of one attempt at a run in this process.

    Args:
        folder: of the private states.
        run: its id.
        attempt: its number.
    """
    return KeptInMemory()


_FIELDS = [each.name for each in fields(Kept)]
