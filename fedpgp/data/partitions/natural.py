"""``natural``: the sites of the data are the clients."""

import numpy as np

from fedpgp.data.partitions.base import register
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError


@register("natural", by_domain=True)
def natural(pool: LabelledPool, clients: int, rng: np.random.Generator) -> Parts:
    """One client a domain, with all that it has: the sites (centres, hospitals,
    writers) are the clients."""
    number = len(pool.domain_names)
    if clients != number:
        listed = ", ".join(pool.domain_names[:10]) + (" …" if number > 10 else "")
        raise FedPGPError(
            f"partition natural has one client a site: set clients={number} ({listed})"
        )
    return [pool.rows(domain_id) for domain_id in range(number)]
