"""What client and server send each other in the steps of a secure sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from fedpgp.errors import FedPGPError


class SumFailed(FedPGPError):
    """The server does not get the sum, and nothing else either.

    Args:
        text: why.
        liars: clients that sent what no honest one sends, by number.
    """

    def __init__(self, text: str, liars: Sequence[int] = ()):
        super().__init__(text)
        self.liars = tuple(liars)


@dataclass(frozen=True)
class Keys:
    """A client's public keys of one sum: that of its masks, and that its shares are encrypted
    with."""

    mask: bytes
    share: bytes


@dataclass(frozen=True)
class Shares:
    """What a client sends in the second step.

    Attributes:
        sealed: peer -> both of its shares, encrypted.
        of_seed: holder -> :func:`digest` of its share of the seed; the client holds a share of its
            own, too.
        of_key: holder -> that of its share of the key.
        seed: :func:`digest` of the seed.
    """

    sealed: Mapping[int, bytes]
    of_seed: Mapping[int, bytes]
    of_key: Mapping[int, bytes]
    seed: bytes


@dataclass(frozen=True)
class Inbox:
    """What a client is sent of one peer's shares: its own, encrypted, and their digests."""

    sealed: bytes
    of_seed: bytes
    of_key: bytes


@dataclass(frozen=True)
class Unmasking:
    """What a client sends in the fourth step.

    Attributes:
        seeds: client whose vector came -> the share of its seed.
        keys: client whose vector did not -> the share of its mask's private key.
    """

    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]


def digest(what: str, owner: int, holder: int, value: bytes) -> bytes:
    """Return what binds a client to a value of 32 random bytes or more, and says nothing of it.

    Args:
        what: "seed", "key".
        owner: whose it is.
        holder: who has it; the owner for the whole.
    """
    return sha256(f"{what} {owner} {holder} ".encode() + value).digest()
