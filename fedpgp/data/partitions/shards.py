"""``shards``: images sorted by class, cut into equal shards."""

import numpy as np

from fedpgp.config.rules import Number
from fedpgp.data.partitions.base import register
from fedpgp.data.pool import LabelledPool, Parts, by_class
from fedpgp.errors import FedPGPError


@register("shards", shards_per_client=Number({"least": 1, "whole": True}))
def shards(
    pool: LabelledPool, clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> Parts:
    """Images sorted by class are cut into equal shards, and each client is assigned some
    (McMahan et al. 2017)."""
    total = clients * shards_per_client
    if total > len(pool.labels):
        raise FedPGPError(
            f"{clients} clients x {shards_per_client} shards need {total} images, there are "
            f"{len(pool.labels)}: use fewer of either"
        )
    cuts = np.array_split(np.concatenate(by_class(pool.labels, rng)), total)
    order = rng.permutation(total)
    return [np.concatenate([cuts[i] for i in order[client::clients]]) for client in range(clients)]
