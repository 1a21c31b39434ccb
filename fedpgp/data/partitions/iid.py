"""``iid``: every client has the same number of images, and of each class too."""

import numpy as np

from fedpgp.data.partitions.base import register
from fedpgp.data.pool import LabelledPool, Parts, apportion, by_class, cut, merge


@register("iid")
def iid(pool: LabelledPool, clients: int, rng: np.random.Generator) -> Parts:
    """Every client gets the same number of images (give or take one), and of each class too."""
    owed, even = np.zeros(clients), np.full(clients, 1 / clients)
    return merge(
        [cut(rows, apportion(even, len(rows), owed)) for rows in by_class(pool.labels, rng)],
        clients,
    )
