"""One client in one secure sum: what it keeps, and what it answers in each step.

It answers a step once: the same question again gets the same answer, another one is refused. So no
server gets two different sums, nor both shares of one client.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedpgp.errors import FedPGPError
from fedpgp.secure_sum.graph import degree, shares_needed
from fedpgp.secure_sum.masks import KEY_BYTES, Agreements, KeyPair, expanded, key_pair, new_seed
from fedpgp.secure_sum.shamir import SHARE_BYTES, split
from fedpgp.secure_sum.steps import Inbox, Keys, Shares, SumFailed, Unmasking, digest

_SECRETS = ("mask_private", "share_private", "seed")

MASK = b"mask"
"""The purpose of what two agree on by their keys of masks."""
NONCE = bytes(12)
"""Of the shares' encryption: each key is for one direction, and encrypts one thing."""


class Refused(FedPGPError):
    """The client does not answer, so that its vector stays hidden; the message says nothing of
    it."""


@dataclass
class Participant:
    """What a client knows in a sum. Its fields are secrets of its own, but for the number.

    Attributes:
        client: its number.
        mask_private, share_private: X25519.
        seed: of its own mask.
        peers: peer -> its public key of masks; empty before the second step.
        secrets: peer -> the keys that the two agreed on for their shares, one for each direction.
        clients: how many take part in the sum; 0 before the second step.
        own: its own shares of its seed and its key.
        held_seeds: holder -> the share of its seed, of its peers and itself; empty before the third
            step.
        held_keys: holder -> the share of its key.
        unmasked: the survivors and the lost it was asked about in the fourth step; None before.
    """

    client: int
    mask_private: bytes = field(default_factory=new_seed, repr=False)
    share_private: bytes = field(default_factory=new_seed, repr=False)
    seed: bytes = field(default_factory=new_seed, repr=False)
    peers: dict[int, bytes] = field(default_factory=dict, repr=False)
    secrets: dict[int, bytes] = field(default_factory=dict, repr=False)
    clients: int = 0
    own: tuple[bytes, bytes] | None = field(default=None, repr=False)
    held_seeds: dict[int, bytes] = field(default_factory=dict, repr=False)
    held_keys: dict[int, bytes] = field(default_factory=dict, repr=False)
    unmasked: tuple[list[int], list[int]] | None = None
    _pairs: dict[bytes, KeyPair] = field(default_factory=dict, repr=False, compare=False)

    def keys(self) -> Keys:
        """Return the public keys: the first step."""
        return Keys(self._pair(self.mask_private).public, self._pair(self.share_private).public)

    def _pair(self, private: bytes) -> KeyPair:
        """Both keys of a private one, made once."""
        if private not in self._pairs:
            self._pairs[private] = key_pair(private)
        return self._pairs[private]

    def shares(
        self,
        keys: Mapping[int, Keys],
        clients: int,
        threshold: float,
        least: int,
        agreements: Agreements | None = None,
    ) -> Shares:
        """Return shares of the seed and of the mask's key for each peer: the second step.

        Args:
            keys: peer -> its public keys.
            clients: how many take part in the whole sum.
            threshold: part of the holders more than which are needed.
            least: clients that a sum must be of.
            agreements: of other clients in this process.

        Raises:
            Refused: too few take part, or not the peers that so many clients have.
            SumFailed: two have the same key.
        """
        if self.clients:
            raise Refused("it was asked for shares of this sum before")
        if clients < least:
            raise Refused(f"a sum of {clients} clients would say too much of each; {least} needed")
        if self.client in keys or len(keys) != degree(clients, threshold):
            raise Refused(
                f"it was given {len(keys)} peers; {degree(clients, threshold)} belong to a sum of "
                f"{clients} clients"
            )
        ours = self.keys()
        check_keys({**keys, self.client: ours})
        agreements = agreements or Agreements()
        own = self._pair(self.share_private)
        holders = sorted([*keys, self.client])
        needed = shares_needed(threshold, len(holders))
        of_seed = split(self.seed, holders, needed)
        of_key = split(self.mask_private, holders, needed)
        sealed, agreed = {}, {}
        for peer, theirs in keys.items():
            about = _shares_of(self.client, peer), 2 * KEY_BYTES
            try:
                agreed[peer] = agreements.of(own, theirs.share, *about)
            except ValueError as error:
                raise SumFailed(f"client {peer} sent a key that is none", [peer]) from error
            data = of_seed[peer] + of_key[peer]
            sealed[peer] = _cipher(agreed[peer], self.client, peer).encrypt(NONCE, data, None)
        self.secrets, self.peers = agreed, {peer: theirs.mask for peer, theirs in keys.items()}
        self.clients, self.own = clients, (of_seed[self.client], of_key[self.client])
        return Shares(
            sealed,
            {holder: digest("seed", self.client, holder, s) for holder, s in of_seed.items()},
            {holder: digest("key", self.client, holder, s) for holder, s in of_key.items()},
            digest("seed", self.client, self.client, self.seed),
        )

    def masked(
        self,
        vector: np.ndarray,
        inbox: Mapping[int, Inbox],
        threshold: float,
        agreements: Agreements | None = None,
    ) -> np.ndarray:
        """Return the vector under all its masks: the third step. It may be called once: vectors
        with other noise under the same masks would say what the noise is.

        Args:
            vector: (size,) uint32.
            inbox: peer -> what it sent; of those that answered the second step.
            threshold, agreements: as in :meth:`shares`.

        Raises:
            Refused: too few peers are left, or it was called before.
            SumFailed: a peer's shares are none.
        """
        if not self.clients or self.held_seeds:
            raise Refused("it was asked for its vector before, or too early")
        if unknown := set(inbox) - set(self.peers):
            raise Refused(f"client {min(unknown)} is none of its peers")
        needed = shares_needed(threshold, len(self.peers) + 1)
        if len(inbox) + 1 < needed:
            raise Refused(f"{len(inbox) + 1} of its holders are left; {needed} are needed")
        seeds, keys = {self.client: self.own[0]}, {self.client: self.own[1]}
        for peer, sent in inbox.items():
            seeds[peer], keys[peer] = _opened(self.secrets[peer], peer, self.client, sent)
        agreements = agreements or Agreements()
        own = self._pair(self.mask_private)
        total = vector + expanded(self.seed, len(vector))
        for peer in inbox:
            try:
                key = agreements.of(own, self.peers[peer], MASK)
            except ValueError as error:
                raise SumFailed(f"client {peer} sent a key that is none", [peer]) from error
            add_mask(total, key, self.client, peer)
        self.held_seeds, self.held_keys = seeds, keys
        return total

    def unmask(
        self, survivors: Collection[int], lost: Collection[int], threshold: float
    ) -> Unmasking:
        """Return shares of the survivors' seeds and of the keys of those that were lost: the
        fourth step.

        Args:
            survivors: of this client and its peers those whose vector came.
            lost: of its peers those whose vector did not, though they answered the second step.
            threshold: as in :meth:`shares`.

        Raises:
            Refused: both shares of one client are asked for, or other shares than before, or those
                of too few survivors.
        """
        asked = (sorted(survivors), sorted(lost))
        if both := set(survivors) & set(lost):
            raise Refused(
                f"it was asked for both shares of client {min(both)}, which would unmask its vector"
            )
        if not self.held_seeds or self.unmasked not in (None, asked):
            raise Refused("it was asked for other shares of this sum before, or too early")
        held = self.held_seeds.keys() | self.held_keys.keys()
        if self.client not in survivors or {*survivors, *lost} != held:
            raise Refused("it was asked for shares of others than its peers")
        needed = shares_needed(threshold, len(self.peers) + 1)
        if len(survivors) < needed:
            raise Refused(f"{len(survivors)} of its holders are left; {needed} are needed")
        self.unmasked = asked
        return Unmasking(
            {client: self.held_seeds[client] for client in survivors},
            {client: self.held_keys[client] for client in lost},
        )

    def spend(self) -> None:
        """Forget the secrets that are not needed any more, after the fourth step."""
        self.mask_private = self.share_private = self.seed = b""
        self.secrets, self._pairs = {}, {}
        survivors, lost = self.unmasked
        self.held_seeds = {client: self.held_seeds[client] for client in survivors}
        self.held_keys = {client: self.held_keys[client] for client in lost}

    def saved(self) -> dict:
        """Return it as JSON can hold it, to be kept by its owner alone."""
        own = None if self.own is None else [part.hex() for part in self.own]
        return {
            "client": self.client,
            **{name: getattr(self, name).hex() for name in _SECRETS},
            "peers": {peer: key.hex() for peer, key in self.peers.items()},
            "secrets": {peer: key.hex() for peer, key in self.secrets.items()},
            "clients": self.clients,
            "own": own,
            "held": {
                holder: [held.get(holder, b"").hex() for held in (self.held_seeds, self.held_keys)]
                for holder in {**self.held_seeds, **self.held_keys}
            },
            "unmasked": self.unmasked,
        }

    @classmethod
    def restored(cls, saved: Mapping) -> "Participant":
        """From :meth:`saved`."""
        found = dict(saved)
        for name in _SECRETS:
            found[name] = bytes.fromhex(found[name])
        for name in ("peers", "secrets"):
            found[name] = {int(peer): bytes.fromhex(key) for peer, key in found[name].items()}
        for place, name in enumerate(("held_seeds", "held_keys")):
            shares = {int(holder): pair[place] for holder, pair in saved["held"].items()}
            found[name] = {holder: bytes.fromhex(s) for holder, s in shares.items() if s}
        del found["held"]
        if found["own"] is not None:
            found["own"] = tuple(map(bytes.fromhex, found["own"]))
        found["unmasked"] = None if found["unmasked"] is None else tuple(found["unmasked"])
        return cls(**found)


def check_keys(keys: Mapping[int, Keys]) -> None:
    """Refuse keys that are no keys, or that two have.

    Raises:
        SumFailed: naming the clients.
    """
    seen: dict[bytes, int] = {}
    for client, theirs in sorted(keys.items()):
        for key in (theirs.mask, theirs.share):
            if len(key) != KEY_BYTES:
                raise SumFailed(f"client {client} sent a key that is none", [client])
            if key in seen:
                both = sorted({seen[key], client})
                who = " and ".join(map(str, both))
                raise SumFailed(f"the same key came twice, from client {who}", both)
            seen[key] = client


def add_mask(total: np.ndarray, key: bytes, client: int, peer: int) -> None:
    """Add the mask of a pair to one's vector, in place: the one with the lower number adds it, the
    other one subtracts it."""
    mask = expanded(key, len(total))
    if client < peer:
        total += mask
    else:
        total -= mask


def _shares_of(one: int, other: int) -> bytes:
    """The purpose of what two agree on by their keys of shares."""
    return b"shares of %d and %d" % ((one, other) if one < other else (other, one))


def _cipher(keys: bytes, sender: int, receiver: int) -> ChaCha20Poly1305:
    """That of one direction."""
    return ChaCha20Poly1305(keys[:KEY_BYTES] if sender < receiver else keys[KEY_BYTES:])


def _opened(keys: bytes, sender: int, receiver: int, sent: Inbox) -> tuple[bytes, bytes]:
    """The shares of a peer, which are those that it told the server of.

    Raises:
        SumFailed: they are not.
    """
    try:
        data = _cipher(keys, sender, receiver).decrypt(NONCE, sent.sealed, None)
    except InvalidTag:
        data = b""
    seed, key = data[:SHARE_BYTES], data[SHARE_BYTES:]
    if (
        digest("seed", sender, receiver, seed) != sent.of_seed
        or digest("key", sender, receiver, key) != sent.of_key
    ):
        raise SumFailed(
            f"client {receiver} says that the shares of client {sender} are none", [sender]
        )
    return seed, key
