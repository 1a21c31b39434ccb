"""The schemes of a partition: which client is assigned which training images."""

import random
from collections.abc import Callable, Sequence
from math import inf

import numpy as np

from fedpgp.data.pool import LabelledPool, Parts, apportion, by_class, cut, merge
from fedpgp.errors import FedPGPError, check_number, unknown

Scheme = Callable[..., Parts]
SCHEMES: dict[str, Scheme] = {}
"""Name -> ``(pool, clients, rng, **options) -> row arrays``. Keyword-only parameters are
the scheme's options."""


def scheme(function: Scheme) -> Scheme:
    """Makes a scheme known under its function's name."""
    SCHEMES[function.__name__] = function
    return function


@scheme
def iid(pool: LabelledPool, clients: int, rng: np.random.Generator) -> Parts:
    """Every client gets the same number of images (give or take one), and of each class too."""
    owed, even = np.zeros(clients), np.full(clients, 1 / clients)
    return merge(
        [cut(rows, apportion(even, len(rows), owed)) for rows in by_class(pool.labels, rng)],
        clients,
    )


@scheme
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
    check_number("partition.beta", beta, above=0, below=inf)
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


@scheme
def pathological(
    pool: LabelledPool, clients: int, rng: np.random.Generator, *, dealing: str = "even"
) -> Parts:
    """Whole classes are assigned, none to two clients.

    ``dealing="even"``: numbers of classes differ by at most one. ``"reference"``: as the public
    code: one fixed shuffle for every seed, ``round(classes / clients)`` a client, the last
    client takes what is left.
    """
    if dealing not in ("even", "reference"):
        raise FedPGPError(unknown("partition.dealing", dealing, ["even", "reference"]))
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


@scheme
def shards(
    pool: LabelledPool, clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> Parts:
    """Images sorted by class are cut into equal shards, and each client is assigned some
    (McMahan et al. 2017)."""
    check_number("partition.shards_per_client", shards_per_client, least=1, whole=True)
    total = clients * shards_per_client
    if total > len(pool.labels):
        raise FedPGPError(
            f"{clients} clients x {shards_per_client} shards need {total} images, there are "
            f"{len(pool.labels)}: use fewer of either"
        )
    cuts = np.array_split(np.concatenate(by_class(pool.labels, rng)), total)
    order = rng.permutation(total)
    return [np.concatenate([cuts[i] for i in order[client::clients]]) for client in range(clients)]


@scheme
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
    return _inside_domains(
        pool, [clients // number] * number, lambda part, many: iid(part, many, rng)
    )


@scheme
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


@scheme
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
    return _inside_domains(
        pool, many, lambda part, n: dirichlet(part, n, rng, beta=beta, balance=balance)
    )


def _inside_domains(
    pool: LabelledPool, clients: list[int], assign: Callable[[LabelledPool, int], Parts]
) -> Parts:
    parts = []
    for domain_id, many in enumerate(clients):
        rows = pool.rows(domain_id)
        parts += [rows[part] for part in assign(LabelledPool(pool.labels[rows], None, ()), many)]
    return parts


@scheme
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
    check_number("partition.beta", beta, above=0, below=inf)
    check_number("partition.beta_fine", beta_fine, above=0, below=inf)
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


BY_DOMAIN = ("domain", "domain_dirichlet", "natural")
"""Schemes that give every client images of one domain."""

UNEVEN = (dirichlet, domain_dirichlet)
"""Schemes whose draw decides how many images a client gets, so that another draw may help."""
