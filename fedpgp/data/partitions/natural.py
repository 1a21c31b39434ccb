"""``natural``: the sites of the data are the clients."""

import numpy as np

from fedpgp.config.rules import Number
from fedpgp.data.partitions.base import inside_domains, register
from fedpgp.data.partitions.iid import iid
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError


@register("natural", by_domain=True, clients_per_site=Number({"whole": True, "least": 1}))
def natural(
    pool: LabelledPool, clients: int, rng: np.random.Generator, *, clients_per_site: int = 1
) -> Parts:
    """One client a domain, with all that it has: the sites (centres, hospitals,
    writers) are the clients. With ``clients_per_site`` so many share a site's images evenly;
    they are numbered site by site."""
    number = len(pool.domain_names)
    if clients != number * clients_per_site:
        listed = ", ".join(pool.domain_names[:10]) + (" …" if number > 10 else "")
        each = "one client" if clients_per_site == 1 else f"{clients_per_site} clients"
        raise FedPGPError(
            f"partition natural has {each} a site: set clients={number * clients_per_site} "
            f"({listed})"
        )
    if clients_per_site == 1:
        return [pool.rows(domain_id) for domain_id in range(number)]
    return inside_domains(pool, [clients_per_site] * number, lambda part, n: iid(part, n, rng))
