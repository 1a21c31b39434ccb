"""``domain_dirichlet``: clients of one domain each, inside it as ``dirichlet``."""

import numpy as np

from fedpgp.config.rules import Flag
from fedpgp.data.partitions.base import ABOVE_ZERO, inside_domains, register
from fedpgp.data.partitions.dirichlet import dirichlet
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError


@register("domain_dirichlet", by_domain=True, evened_by="beta", beta=ABOVE_ZERO, balance=Flag())
def domain_dirichlet(
    pool: LabelledPool,
    clients: int,
    rng: np.random.Generator,
    *,
    beta: float = 0.3,
    balance: bool = True,
) -> Parts:
    """Clients are spread evenly over the domains (the first get one more); inside
    each, as ``dirichlet``."""
    number = len(pool.domain_names)
    if clients < number:
        raise FedPGPError(
            f"partition domain_dirichlet needs at least one client a domain: {clients} clients, "
            f"{number} domains ({', '.join(pool.domain_names)}); use clients={number} or more, "
            "or fewer domains"
        )
    many = [clients // number + (i < clients % number) for i in range(number)]
    return inside_domains(
        pool, many, lambda part, n: dirichlet(part, n, rng, beta=beta, balance=balance)
    )
