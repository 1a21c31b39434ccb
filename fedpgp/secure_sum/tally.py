"""The server's side of one secure sum: it passes on what clients send each other, adds up masked
vectors, and takes off the masks of the sum."""

from collections.abc import Mapping

import numpy as np

from fedpgp.secure_sum.graph import Graph, shares_needed
from fedpgp.secure_sum.masks import Agreements, expanded, key_pair
from fedpgp.secure_sum.participant import MASK, add_mask, check_keys
from fedpgp.secure_sum.shamir import join
from fedpgp.secure_sum.steps import Inbox, Keys, Shares, SumFailed, Unmasking, digest


class Tally:
    """One sum.

    Args:
        keys: client -> its public keys, of those that answered the first step.
        threshold: part of a client's holders more than which have to stay to the end.
        size: numbers in a vector.

    Raises:
        SumFailed: two clients have the same key.
    """

    def __init__(self, keys: Mapping[int, Keys], threshold: float, size: int):
        check_keys(keys)
        self._keys, self._threshold, self._size = dict(keys), threshold, size
        graph = Graph(list(keys), threshold)
        self._peers = {client: graph.neighbours(client) for client in keys}
        self._shares: dict[int, Shares] = {}
        self._masked: set[int] = set()
        self._total = np.zeros(size, dtype=np.uint32)
        self._given: dict[int, Unmasking] = {}

    @property
    def shared(self) -> list[int]:
        """The clients that have answered the second step, ascending."""
        return sorted(self._shares)

    @property
    def survivors(self) -> list[int]:
        """The clients whose vectors are in the sum, ascending."""
        return sorted(self._masked)

    def peers(self, client: int) -> dict[int, Keys]:
        """Return the keys of a client's peers: it is sent them in the second step."""
        return {peer: self._keys[peer] for peer in self._peers[client]}

    def take_shares(self, client: int, shares: Shares) -> None:
        """Take a client's answer to the second step.

        Raises:
            ValueError: it is not for its peers.
        """
        peers = self._peers[client]
        holders = {*peers, client}
        digests = shares.of_seed.keys(), shares.of_key.keys()
        if shares.sealed.keys() != set(peers) or any(names != holders for names in digests):
            raise ValueError("its shares are not for its peers")
        self._shares[client] = shares

    def inbox(self, client: int) -> dict[int, Inbox]:
        """Return what a client is sent in the third step."""
        sent = {peer: self._shares[peer] for peer in self._peers[client] if peer in self._shares}
        return {
            peer: Inbox(shares.sealed[client], shares.of_seed[client], shares.of_key[client])
            for peer, shares in sent.items()
        }

    def take_masked(self, client: int, vector: np.ndarray) -> None:
        """Add a client's masked vector, (size,) uint32, to the sum; once.

        Raises:
            ValueError: it is of another size.
        """
        if vector.shape != (self._size,) or vector.dtype != np.uint32:
            raise ValueError(f"its vector is {vector.dtype}{list(vector.shape)}")
        if client not in self._masked:
            self._masked.add(client)
            self._total += vector

    def to_unmask(self, client: int) -> tuple[list[int], list[int]]:
        """Return the survivors among a client and its peers, and those that were lost: it is asked
        about them in the fourth step."""
        shared = [c for c in sorted([*self._peers[client], client]) if c in self._shares]
        return (
            [c for c in shared if c in self._masked],
            [c for c in shared if c not in self._masked],
        )

    def take_unmasking(self, client: int, given: Unmasking) -> None:
        """Take a client's answer to the fourth step.

        Raises:
            ValueError: it gives other shares than it was asked for.
            SumFailed: a share is not the one that its owner told of.
        """
        survivors, lost = self.to_unmask(client)
        if sorted(given.seeds) != survivors or sorted(given.keys) != lost:
            raise ValueError("it gives shares of others than it was asked for")
        for what, shares in (("seed", given.seeds), ("key", given.keys)):
            for owner, share in shares.items():
                told = getattr(self._shares[owner], f"of_{what}")[client]
                if digest(what, owner, client, share) != told:
                    raise SumFailed(
                        f"client {client} gave a share of client {owner} that is wrong", [client]
                    )
        self._given[client] = given

    def total(self) -> np.ndarray:
        """Return the sum of the survivors' vectors, (size,) uint32.

        Raises:
            SumFailed: too few shares of one of them came, or a client shared other secrets than it
                uses.
        """
        seeds, keys = self._enough("seeds", self.survivors), self._enough("keys", self._lost())
        total, agreements = self._total.copy(), Agreements()
        for client, shares in seeds.items():
            seed = join(shares)
            if seed is None or digest("seed", client, client, seed) != self._shares[client].seed:
                raise SumFailed(f"client {client} shared a seed that is none", [client])
            total -= expanded(seed, self._size)
        for client, shares in keys.items():
            private = join(shares)
            pair = None if private is None else key_pair(private)
            if pair is None or pair.public != self._keys[client].mask:
                raise SumFailed(f"client {client} shared a key that is not its own", [client])
            for peer in self._peers[client]:
                if peer in self._masked:  # what the lost one would have added
                    agreed = agreements.of(pair, self._keys[peer].mask, MASK)
                    add_mask(total, agreed, client, peer)
        return total

    def _lost(self) -> list[int]:
        return [client for client in self.shared if client not in self._masked]

    def _enough(self, what: str, clients: list[int]) -> dict[int, dict[int, bytes]]:
        """As many shares of these clients' secrets as are needed, before any of them is put
        together.

        Raises:
            SumFailed: there are fewer.
        """
        found = {}
        for client in clients:
            holders = sorted([*self._peers[client], client])
            needed = shares_needed(self._threshold, len(holders))
            shares = {
                holder: getattr(self._given[holder], what)[client]
                for holder in holders
                if holder in self._given
            }
            if len(shares) < needed:
                raise SumFailed(
                    f"{len(shares)} of the {len(holders)} that hold shares of client {client} "
                    f"gave them; {needed} are needed (privacy.secure_sum_threshold="
                    f"{self._threshold:.3g})"
                )
            found[client] = dict(list(shares.items())[:needed])
        return found
