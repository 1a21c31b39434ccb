"""A whole secure sum in one process, with clients that go in any step and others that lie."""

import json
from collections.abc import Callable, Collection, Mapping

import numpy as np

from fedpgp.secure_sum import Participant, Tally

STEPS = ("keys", "shares", "masked", "unmask")
THRESHOLD = 2 / 3


class Sum:
    """Runs the four steps.

    Args:
        vectors: client -> (size,) uint32.
        lost: step -> clients whose answer to it does not come.
        lies: step -> (client, its honest answer) -> what is sent.
        threshold: of holders.

    Attributes:
        clients: client -> its :class:`Participant`.
        sent: client -> its masked vector, also where the server does not get it.
    """

    def __init__(
        self,
        vectors: Mapping[int, np.ndarray],
        lost: Mapping[str, Collection[int]] | None = None,
        lies: Mapping[str, Callable] | None = None,
        threshold: float = THRESHOLD,
    ):
        self.vectors, self.lost, self.lies = vectors, lost or {}, lies or {}
        self.threshold, self.size = threshold, len(next(iter(vectors.values())))
        self.clients = {client: Participant(client) for client in vectors}
        self.sent: dict[int, np.ndarray] = {}

    def answers(self, step: str, asked: Collection[int], answer: Callable) -> dict:
        """The answers to a step that come; every client is kept as bytes in between."""
        found = {}
        for client in asked:
            said = answer(self.clients[client])
            self.clients[client] = _kept(self.clients[client])
            if step in self.lies:
                said = self.lies[step](client, said)
            if client not in self.lost.get(step, ()):
                found[client] = said
        return found

    def run(self, least: int = 3) -> np.ndarray:
        """The sum of the vectors of those that were not lost before the third step's end."""
        keys = self.answers("keys", self.vectors, lambda client: client.keys())
        tally = Tally(keys, self.threshold, self.size)

        def shares(client: Participant):
            return client.shares(tally.peers(client.client), len(keys), self.threshold, least)

        for client, said in self.answers("shares", keys, shares).items():
            tally.take_shares(client, said)

        def masked(client: Participant):
            inbox = tally.inbox(client.client)
            if "inbox" in self.lies:
                inbox = self.lies["inbox"](client.client, inbox)
            sent = client.masked(self.vectors[client.client], inbox, self.threshold)
            self.sent[client.client] = sent
            return sent

        for client, said in self.answers("masked", tally.shared, masked).items():
            tally.take_masked(client, said)

        def unmask(client: Participant):
            return client.unmask(*tally.to_unmask(client.client), self.threshold)

        for client, said in self.answers("unmask", tally.survivors, unmask).items():
            tally.take_unmasking(client, said)
        return tally.total()


def _kept(client: Participant) -> Participant:
    return Participant.restored(json.loads(json.dumps(client.saved())))


def vectors(clients: int, size: int = 50, seed: int = 0) -> dict[int, np.ndarray]:
    """Numbers that nobody masks."""
    rng = np.random.default_rng(seed)
    return {c: rng.integers(2**32, size=size, dtype=np.uint32) for c in range(clients)}


def plain(vectors: Mapping[int, np.ndarray], clients: Collection[int]) -> np.ndarray:
    """Their sum modulo 2**32."""
    return sum(vectors[c].astype(object) for c in clients) % 2**32
