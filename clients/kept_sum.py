"""What a client keeps between the steps of a secure sum, and of sums before: one file a client,
which its owner alone can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from fedpgp.secure_sum import Participant, Quantiser, Shares

NOTHING = np.zeros(0, np.uint32)


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
        masked: the vector under masks, from the third step to the fourth.
        asked: step -> digest of what it was asked.
        shares: its reply in the second step, until the third.
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
    masked: np.ndarray = field(default_factory=lambda: NOTHING)
    asked: dict[str, str] = field(default_factory=dict)
    shares: Shares | None = None
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
        if self.shares is not None:
            digests = {h: [one.hex(), two.hex()] for h, (one, two) in self.shares.digests.items()}
            sealed = {peer: data.hex() for peer, data in self.shares.sealed.items()}
            seed = self.shares.seed.hex()
            about["shares"] = {"sealed": sealed, "digests": digests, "seed": seed}
        header = json.dumps(about).encode()
        vectors = (each.astype("<u4").tobytes() for each in (self.vector, self.masked))
        return len(header).to_bytes(8), header, *vectors

    @classmethod
    def of(cls, data: bytes) -> "Kept":
        """From the joined :meth:`parts`."""
        end = 8 + int.from_bytes(data[:8])
        about = json.loads(data[8:end])
        found = np.frombuffer(data[end:], "<u4").astype(np.uint32)
        numbers = about.pop("numbers", len(found))  # an earlier version kept one vector
        about |= {"vector": found[:numbers], "masked": found[numbers:]}
        about["participant"] = Participant.restored(about["participant"])
        about["quantiser"] = Quantiser(**about["quantiser"])
        if "shares" in about:
            about["shares"] = _shares(about["shares"])
        return cls(**{name: about[name] for name in _FIELDS if name in about})


_FIELDS = [each.name for each in fields(Kept)]


def _shares(saved: Mapping) -> Shares:
    sealed = {int(peer): bytes.fromhex(text) for peer, text in saved["sealed"].items()}
    digests = {
        int(holder): (bytes.fromhex(one), bytes.fromhex(two))
        for holder, (one, two) in saved["digests"].items()
    }
    return Shares(sealed, digests, bytes.fromhex(saved["seed"]))
