"""Who shares secrets with whom: all with all among few clients, else each with k neighbours on a
ring in random order (Bell et al., CCS 2020, section 3: a Harary graph with permuted clients).

Which k is enough, for n clients and a threshold of t of a client and its k neighbours:

* a round fails for lack of shares with a chance below 2**-20 where 5 % of the clients, whoever, are
  lost in it;
* t of the holders of some client's shares are among 10 % of the clients, whoever, that give the
  server all they have, with a chance below 2**-40.

Both are sums over n of tails of the hypergeometric distribution, computed exactly.
"""

import secrets
from collections.abc import Sequence
from functools import lru_cache
from math import comb

COMPLETE = 33
"""Clients up to which all share with all."""
LOST, COLLUDING = 0.05, 0.1
FAILS, READS = 2**-20, 2**-40


def shares_needed(threshold: float, holders: int) -> int:
    """Return how many of so many holders have to give their shares.

    Args:
        threshold: more than this part of them (``privacy.secure_sum_threshold``), 0.5 or more.
        holders: a client and its neighbours.
    """
    return min(holders, int(threshold * holders + 1e-9) + 1)


@lru_cache(maxsize=256)
def degree(clients: int, threshold: float) -> int:
    """Return how many neighbours each client has: all others among few, else an even number."""
    if clients <= COMPLETE:
        return clients - 1
    lost, colluding = round(LOST * clients), round(COLLUDING * clients)
    for k in range(COMPLETE - 1, clients - 1, 2):
        needed = shares_needed(threshold, k + 1)
        # One that is lost is missing among the holders of its own shares, too.
        fails = clients * _tail(clients - 1, lost - 1, k, k - needed + 1)
        if fails < FAILS and clients * _tail(clients - 1, colluding, k, needed) < READS:
            return k
    return clients - 1


def fewest_survivors(clients: int, threshold: float) -> int:
    """Return how many clients a sum is of at least: every client's holders are as many, so that
    n t / (k + 1) have to stay for t of each k + 1 to do."""
    holders = degree(clients, threshold) + 1
    return -(-clients * shares_needed(threshold, holders) // holders)


def _tail(total: int, marked: int, drawn: int, least: int) -> float:
    """The chance that ``least`` or more of those drawn are marked."""
    ways = sum(
        comb(marked, count) * comb(total - marked, drawn - count)
        for count in range(least, min(drawn, marked) + 1)
    )
    return ways / comb(total, drawn)


class Graph:
    """The neighbours of a sum's clients, drawn from the operating system's source.

    Args:
        clients: different numbers.
        threshold: as in :func:`shares_needed`.
    """

    def __init__(self, clients: Sequence[int], threshold: float):
        self._clients, self._degree = sorted(clients), degree(len(clients), threshold)
        if self._degree < len(clients) - 1:
            secrets.SystemRandom().shuffle(self._clients)
        self._place = {client: place for place, client in enumerate(self._clients)}

    def neighbours(self, client: int) -> list[int]:
        """Return the neighbours of a client, ascending."""
        count = len(self._clients)
        if self._degree == count - 1:
            return [other for other in self._clients if other != client]
        place, reach = self._place[client], self._degree // 2
        near = [*range(-reach, 0), *range(1, reach + 1)]
        return sorted(self._clients[(place + offset) % count] for offset in near)
