"""``dirichlet``: each class in proportions drawn from a Dirichlet distribution."""

import numpy as np

from fedpgp.config.rules import Flag
from fedpgp.data.partitions.base import ABOVE_ZERO, register
from fedpgp.data.pool import LabelledPool, Parts, apportion, by_class, cut, merge


@register("dirichlet", evened_by="beta", beta=ABOVE_ZERO, balance=Flag())
def dirichlet(
    pool: LabelledPool,
    clients: int,
    rng: np.random.Generator,
    *,
    beta: float = 0.3,
    balance: bool = True,
) -> Parts:
    """Each class is cut in proportions drawn from Dir(beta, …, beta) over the clients.

    ``balance``: a client that already holds its N / clients images gets nothing of the classes that
    follow, as in the code of FedPGP and its peers ("noniid-labeldir").
    """
    full = len(pool.labels) / clients
    held, owed = np.zeros(clients), np.zeros(clients)
    pieces = []
    for rows in by_class(pool.labels, rng):
        open_ = np.flatnonzero(held < full) if balance else np.arange(clients)
        fractions = np.zeros(clients)
        # A Dirichlet draw over some clients is the draw over all, restricted and renormalised; and
        # it never divides by zero.
        fractions[open_] = rng.dirichlet(np.full(len(open_), beta))
        counts = apportion(fractions, len(rows), owed)
        held += counts
        pieces.append(cut(rows, counts))
    return merge(pieces, clients)
