"""``pathological``: whole classes, none of two clients."""

import random

import numpy as np

from fedpgp.config.rules import Choice
from fedpgp.data.partitions.base import register
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError


@register("pathological", dealing=Choice(("even", "reference")))
def pathological(
    pool: LabelledPool, clients: int, rng: np.random.Generator, *, dealing: str = "even"
) -> Parts:
    """Whole classes are assigned, none to two clients.

    ``dealing="even"``: numbers of classes differ by at most one. ``"reference"``: as the public
    code: one fixed shuffle for every seed, ``round(classes / clients)`` a client, the last
    client takes what is left.
    """
    present = np.unique(pool.labels)
    if clients > len(present):
        raise FedPGPError(
            f"{clients} clients cannot share {len(present)} classes without overlap: use at most "
            f"{len(present)} clients, or another partition (dirichlet, shards, iid)"
        )
    lists = np.array_split(rng.permutation(present), clients)
    if dealing == "reference":
        lists = reference_classes(int(pool.labels.max()) + 1, clients)
    return [np.flatnonzero(np.isin(pool.labels, labels)) for labels in lists]


def reference_classes(classes: int, clients: int) -> list[list[int]]:
    """The classes of each client in the public code of FedPGP and its peers (the last
    clients may have none)."""
    order = list(range(classes))
    random.Random(2023).shuffle(order)
    each = int(round(classes / clients))
    return [order[i * each : (i + 1) * each] for i in range(clients - 1)] + [
        order[(clients - 1) * each :]
    ]
