"""``domain``: clients of one domain each."""

import numpy as np

from fedpgp.data.partitions.base import inside_domains, register
from fedpgp.data.partitions.iid import iid
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError


@register("domain", by_domain=True)
def domain(pool: LabelledPool, clients: int, rng: np.random.Generator) -> Parts:
    """One client a domain; or several, who share the domain's images evenly. Clients are
    numbered domain by domain."""
    number = len(pool.domain_names)
    if clients % number:
        raise FedPGPError(
            f"partition domain needs as many clients as domains, or a multiple: {clients} "
            f"clients, {number} domains ({', '.join(pool.domain_names)}); try "
            f"clients={max(1, round(clients / number)) * number}"
        )
    return inside_domains(
        pool, [clients // number] * number, lambda part, many: iid(part, many, rng)
    )
