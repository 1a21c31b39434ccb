"""Who gets which images: partitions of a labelled data set into clients.

Each scheme assigns the training images. Test images follow: of every class (and domain,
where images are split by domain) a client gets the fraction of the test images that it has
of the training images, to the nearest image. So one draw cuts both, and a client is tested
on its own class proportions.
"""

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.seeding import generator

COMMON = ("min_size", "min_test_size", "pooled")
"""Options of every scheme."""

MAX_DRAWS = 100
"""Random draws tried before a scheme whose clients are too small gives up."""


@dataclass(frozen=True)
class LabelledPool:
    """What is split: (N,) class labels, (N,) domain ids in order of appearance or
    None, the domains' names."""

    labels: np.ndarray
    domains: np.ndarray | None
    domain_names: tuple[str, ...]

    def rows(self, domain: int) -> np.ndarray:
        return np.flatnonzero(self.domains == domain)


Parts = list[np.ndarray]
Scheme = Callable[..., Parts]
SCHEMES: dict[str, Scheme] = {}
"""Name -> ``(pool, clients, rng, **options) -> row arrays``. Keyword-only parameters are
the scheme's options."""


def scheme(function: Scheme) -> Scheme:
    """Makes a scheme known under its function's name."""
    SCHEMES[function.__name__] = function
    return function


def partition(
    labels: Sequence[int] | np.ndarray,
    clients: int,
    scheme: str,
    seed: int,
    *,
    domains: Sequence[str] | None = None,
    test_labels: Sequence[int] | np.ndarray | None = None,
    test_domains: Sequence[str] | None = None,
    min_size: int = 1,
    min_test_size: int = 1,
    pooled: bool = False,
    **options,
) -> Parts | tuple[Parts, Parts]:
    """Assign images to clients, without overlap and without remainder.

    Args:
        labels: (N,) classes of the training images.
        clients: number of clients.
        scheme: one of :data:`SCHEMES`; its options are its function's keyword parameters.
        seed: same seed, same partition; independent of any global random state.
        domains: N domain names, for the schemes that split by domain.
        test_labels, test_domains: of the test images, when these are to be split too.
        min_size, min_test_size: least number of training and of test images of a client. A random
            scheme is drawn anew, up to 100 times, until every client has that many. The public code
            of FedPGP and its peers asks for 10 of both (FedPGP, commit d43045b33f42,
            datasets/datasplit.py, lines 273 to 311).
        pooled: training and test images are split together, and a client's test images are those
            that fall to it, as in the public code's Pachinko allocation (the same file, lines 319
            to 402); else test images follow the training images.
        options: the scheme's own.

    Returns:
        One ascending int64 array of rows a client; with ``test_labels`` two such lists, train and
        test.

    Raises:
        FedPGPError: unknown scheme or option; a partition that cannot work, such as a client
            without images. The message names what to change.
    """
    if scheme not in SCHEMES:
        raise FedPGPError(unknown("partition", scheme, sorted(SCHEMES)))
    assign = SCHEMES[scheme]
    valid = [
        p.name for p in inspect.signature(assign).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    for option in options:
        if option not in valid:
            raise FedPGPError(unknown(f"option of partition {scheme}", option, [*valid, *COMMON]))
    if clients < 1:
        raise FedPGPError(f"clients={clients}: a federation needs at least 1 client")
    check_number("partition.min_size", min_size, least=1, whole=True)
    check_number("partition.min_test_size", min_test_size, least=1, whole=True)
    if scheme not in BY_DOMAIN:
        domains = test_domains = None  # they do not matter, in training or test
    elif domains is None or (test_labels is not None and test_domains is None):
        raise FedPGPError(
            f"partition {scheme} needs a data set with domains; choose dirichlet, iid or "
            "pathological"
        )
    pool, test = _pools(labels, domains, test_labels, test_domains)
    if len(pool.labels) < clients * min_size:
        raise FedPGPError(
            f"{clients} clients with at least {min_size} images need {clients * min_size}, there "
            f"are {len(pool.labels)}: use fewer clients, or more shots"
        )
    together = _joined(pool, test) if pooled and test is not None else None
    smallest: tuple[int, int, str] | None = (
        None  # the best of the failed draws: images, client, split
    )
    for draw in range(MAX_DRAWS):
        rng = generator(seed, f"partition {scheme}", draw)
        if together is not None:
            parts, test_parts = _split(assign(together, clients, rng, **options), len(pool.labels))
        else:
            parts = assign(pool, clients, rng, **options)
            test_parts = None if test is None else follow(parts, pool, test)
        worst = _too_small(parts, test_parts, min_size, min_test_size)
        if worst is None:
            train = [np.sort(part).astype(np.int64) for part in parts]
            return train if test_parts is None else (train, test_parts)
        if smallest is None or worst[0] > smallest[0]:
            smallest = worst
        if assign not in _UNEVEN:
            break
    if assign is natural:
        raise FedPGPError(
            f"partition natural: site {pool.domain_names[smallest[1]]} has {_images(smallest)}; "
            "give it more, or leave it out"
        )
    raise FedPGPError(
        _refusal(scheme, clients, {"training": min_size, "test": min_test_size}, smallest, options)
    )


def _pools(labels, domains, test_labels, test_domains) -> tuple[LabelledPool, LabelledPool | None]:
    labels = np.asarray(labels, dtype=np.int64)
    names = tuple(dict.fromkeys(domains or ()))
    ids = {name: i for i, name in enumerate(names)}
    strangers = sorted(set(test_domains or ()) - set(names))
    if strangers:
        raise FedPGPError(
            f"test images of {', '.join(strangers)} cannot be split: no training image is of "
            "that domain"
        )

    def numbers(domains):
        return (
            None
            if domains is None
            else np.array([ids[domain] for domain in domains], dtype=np.int64)
        )

    pool = LabelledPool(labels, numbers(domains), names)
    if test_labels is None:
        return pool, None
    return pool, LabelledPool(np.asarray(test_labels, dtype=np.int64), numbers(test_domains), names)


def _joined(pool: LabelledPool, test: LabelledPool) -> LabelledPool:
    """Training images, and behind them test images, as one."""
    pairs = ((getattr(pool, name), getattr(test, name)) for name in ("labels", "domains"))
    labels, domains = (
        None if first is None else np.concatenate([first, second]) for first, second in pairs
    )
    return LabelledPool(labels, domains, pool.domain_names)


def _split(parts: Parts, train: int) -> tuple[Parts, Parts]:
    """Rows of what :func:`_joined` made as rows of the training images and ascending
    rows of the test images."""
    return [part[part < train] for part in parts], [
        np.sort(part[part >= train]) - train for part in parts
    ]


def _too_small(
    parts: Parts, test_parts: Parts | None, min_size: int, min_test_size: int
) -> tuple[int, int, str] | None:
    """(images, client, split) of the smallest client that is too small, or None."""
    for split, found, least in (("training", parts, min_size), ("test", test_parts, min_test_size)):
        if found is not None:
            sizes = [len(part) for part in found]
            client = int(np.argmin(sizes))
            if sizes[client] < least:
                return sizes[client], client, split
    return None


def _refusal(
    scheme: str, clients: int, least: dict[str, int], smallest: tuple[int, int, str], options: dict
) -> str:
    _, client, split = smallest
    has = f"client {client} would have {_images(smallest)}"
    if SCHEMES[scheme] not in _UNEVEN:
        return (
            f"partition {scheme} with {clients} clients: {has}; use fewer clients, or more images"
        )
    beta = options.get("beta", inspect.signature(SCHEMES[scheme]).parameters["beta"].default)
    option = "min_size" if split == "training" else "min_test_size"
    return (
        f"partition {scheme} with beta={beta} and {clients} clients: in the best of {MAX_DRAWS} "
        f"draws {has} (partition.{option}={least[split]}); raise partition.beta, use fewer "
        "clients, or give more images (shots)"
    )


def _images(smallest: tuple[int, int, str]) -> str:
    images, _, split = smallest
    return f"{images or 'no'} {split} image{'s' * (images != 1)}"


# Apportioning. ------------------------------------------------------------------------------------


def apportion(fractions: np.ndarray, images: int, owed: np.ndarray) -> np.ndarray:
    """Whole images for fractions that sum to 1: each client's rounded down or up, the sum exact.

    Whom rounding has cost most so far is rounded up first, so that many small classes do not starve
    the same client again and again.

    Args:
        fractions: (clients,) sums to 1.
        images: of this class.
        owed: (clients,) what rounding has cost each client so far; updated in place.

    Returns:
        (clients,) int64.
    """
    exact = fractions * images
    counts = np.floor(exact + 1e-9).astype(np.int64)
    owed += exact - counts
    left = images - int(counts.sum())
    entitled = np.flatnonzero(exact - counts > 1e-9)
    up = entitled[np.argsort(-owed[entitled], kind="stable")[:left]]
    counts[up] += 1
    owed[up] -= 1
    return counts


def _cut(rows: np.ndarray, counts: np.ndarray) -> Parts:
    return np.split(rows, np.cumsum(counts)[:-1])


def _merge(pieces: list[Parts], clients: int) -> Parts:
    """Joins what each client got of each class."""
    empty = np.empty(0, dtype=np.int64)
    return [
        np.concatenate([empty, *(piece[client] for piece in pieces)]) for client in range(clients)
    ]


def _by_class(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled rows of each class, classes ascending."""
    return [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def follow(parts: Parts, pool: LabelledPool, test: LabelledPool) -> Parts:
    """Assign test images in the proportions in which the training images were assigned, class by
    class (and domain by domain).

    Test images of a class that nobody trains on are split evenly.

    Args:
        parts: rows of ``pool`` a client.
        pool: training images.
        test: test images; their domains count when they are given.

    Returns:
        Ascending rows of ``test``, one array a client.
    """
    owner = np.empty(len(pool.labels), dtype=np.int64)
    for client, rows in enumerate(parts):
        owner[rows] = client
    clients = len(parts)
    owed = np.zeros(clients)
    pieces = []
    keys = [pool.labels] if test.domains is None else [pool.domains, pool.labels]
    test_keys = [test.labels] if test.domains is None else [test.domains, test.labels]
    for key in np.unique(np.stack(test_keys, 1), axis=0):
        rows = np.flatnonzero(
            np.all([column == k for column, k in zip(test_keys, key, strict=True)], axis=0)
        )
        train = np.all([column == k for column, k in zip(keys, key, strict=True)], axis=0)
        if (
            not train.any() and test.domains is not None
        ):  # the domain's clients, whatever they have of it
            train = pool.domains == key[0]
        counts = (
            np.bincount(owner[train], minlength=clients).astype(float)
            if train.any()
            else np.ones(clients)
        )
        pieces.append(_cut(rows, apportion(counts / counts.sum(), len(rows), owed)))
    return [np.sort(part) for part in _merge(pieces, clients)]


# The schemes. -------------------------------------------------------------------------------------


@scheme
def iid(pool: LabelledPool, clients: int, rng: np.random.Generator) -> Parts:
    """Every client gets the same number of images (give or take one), and of each class too."""
    owed, even = np.zeros(clients), np.full(clients, 1 / clients)
    return _merge(
        [_cut(rows, apportion(even, len(rows), owed)) for rows in _by_class(pool.labels, rng)],
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
    for rows in _by_class(pool.labels, rng):
        open_ = np.flatnonzero(held < full) if balance else np.arange(clients)
        fractions = np.zeros(clients)
        # A Dirichlet draw over some clients is the draw over all, restricted and renormalised; and
        # it never divides by zero.
        fractions[open_] = rng.dirichlet(np.full(len(open_), beta))
        counts = apportion(fractions, len(rows), owed)
        held += counts
        pieces.append(_cut(rows, counts))
    return _merge(pieces, clients)


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
    cuts = np.array_split(np.concatenate(_by_class(pool.labels, rng)), total)
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

_UNEVEN = (dirichlet, domain_dirichlet)
"""Schemes whose draw decides how many images a client gets, so that another draw may help."""
