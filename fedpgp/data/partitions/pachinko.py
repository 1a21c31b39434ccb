"""``pachinko``: superclasses and classes drawn image by image."""

from collections.abc import Sequence

import numpy as np

from fedpgp.data.partitions.base import ABOVE_ZERO, register
from fedpgp.data.pool import LabelledPool, Parts, apportion
from fedpgp.errors import FedPGPError


@register("pachinko", beta=ABOVE_ZERO, beta_fine=ABOVE_ZERO)
def pachinko(
    pool: LabelledPool,
    clients: int,
    rng: np.random.Generator,
    *,
    superclasses: Sequence[int] | None = None,
    beta: float = 0.3,
    beta_fine: float = 10.0,
) -> Parts:
    """Pachinko allocation (Reddi et al. 2021; CIFAR-100's public split): each client
    draws its images one by one.

    A client draws weights of the superclasses from Dir(beta) and of the classes inside each from
    Dir(beta_fine); every image is of a superclass and then a class drawn by these weights. What is
    used up is left out from then on. All clients get the same number of images (give or take one).

    ``superclasses``: (classes,) the superclass of each class.
    """
    if superclasses is None:
        raise FedPGPError(
            "partition pachinko needs a data set whose classes have superclasses, such as "
            "cifar100 or emoji"
        )
    group = np.unique(np.asarray(superclasses), return_inverse=True)[1]
    if pool.labels.max() >= len(group):
        raise FedPGPError(
            f"superclasses names {len(group)} classes, the labels go up to {pool.labels.max()}"
        )
    groups = group.max() + 1
    stock = [
        list(rng.permutation(np.flatnonzero(pool.labels == label))) for label in range(len(group))
    ]
    sizes = apportion(np.full(clients, 1 / clients), len(pool.labels), np.zeros(clients))
    parts: Parts = [np.empty(0, dtype=np.int64)] * clients
    for client in rng.permutation(clients):  # who draws last takes what is left
        coarse = rng.dirichlet(np.full(groups, beta))
        fine = np.empty(len(group))
        for g in range(groups):
            fine[group == g] = rng.dirichlet(np.full(int((group == g).sum()), beta_fine))
        taken: list[int] = []
        while len(taken) < sizes[client]:
            available = np.array([len(rows) for rows in stock])
            weights = _weights(coarse, fine, group, available > 0)
            # All at once instead of one by one; what a class lacks is drawn again from the others.
            wanted = rng.multinomial(sizes[client] - len(taken), weights)
            for label in np.flatnonzero(wanted):
                count = min(int(wanted[label]), int(available[label]))
                taken += [stock[label].pop() for _ in range(count)]
        parts[client] = np.array(taken, dtype=np.int64)
    return parts


def _weights(
    coarse: np.ndarray, fine: np.ndarray, group: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """Probability of each class: superclass weight x class weight, both renormalised over what is
    left."""
    inside = np.bincount(group, fine * left, minlength=len(coarse))
    outer = coarse * (inside > 0)
    if outer.sum() <= 0:  # all that this client likes is gone
        return left / left.sum()
    weights = (outer / outer.sum())[group] * fine * left / np.where(inside > 0, inside, 1)[group]
    return weights / weights.sum()
