"""Who gets which images: partitions of a labelled data set into clients.

Each scheme assigns the training images. Test images follow: of every class (and domain,
where images are split by domain) a client gets the fraction of the test images that it has
of the training images, to the nearest image. So one draw cuts both, and a client is tested
on its own class proportions.
"""

import inspect
from collections.abc import Sequence

import numpy as np

from fedpgp.config import PartitionSection
from fedpgp.data.partitions.base import SCHEMES, check_options
from fedpgp.data.pool import LabelledPool, Parts, follow
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator

MAX_DRAWS = 100
"""Random draws tried before a scheme whose clients are too small gives up."""


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
            without images; an option of test images without ``test_labels``. The message names
            what to change.
    """
    check_options(scheme, options)
    chosen = SCHEMES[scheme]
    assign = chosen.assign
    if clients < 1:
        raise FedPGPError(f"clients={clients}: a federation needs at least 1 client")
    PartitionSection.check(min_size=min_size, min_test_size=min_test_size, pooled=pooled)
    if test_labels is None and (asked := _of_tests(pooled, min_test_size, test_domains)):
        raise FedPGPError(
            f"{asked} is about test images, and no test labels are given: give test_labels, or "
            "leave it out"
        )
    if not chosen.by_domain:
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
        if not chosen.evened_by:
            break
    if scheme == "natural":
        many = options.get("clients_per_site", 1)
        site = f"site {pool.domain_names[smallest[1] // many]}"
        if many > 1:
            site = f"a client of {site}"
        raise FedPGPError(
            f"partition natural: {site} has {_images(smallest)}; give it more, or leave it out"
        )
    raise FedPGPError(
        _refusal(scheme, clients, {"training": min_size, "test": min_test_size}, smallest, options)
    )


def _of_tests(pooled: bool, min_test_size: int, test_domains: Sequence[str] | None) -> str:
    """What is asked for that needs test images; empty for nothing."""
    if pooled:
        return "partition.pooled=true"
    if min_test_size > 1:
        return f"partition.min_test_size={min_test_size}"
    return "" if test_domains is None else "test_domains"


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
    chosen = SCHEMES[scheme]
    if not chosen.evened_by:
        return (
            f"partition {scheme} with {clients} clients: {has}; use fewer clients, or more images"
        )
    more = chosen.evened_by
    value = options.get(more, inspect.signature(chosen.assign).parameters[more].default)
    option = "min_size" if split == "training" else "min_test_size"
    return (
        f"partition {scheme} with {more}={value} and {clients} clients: in the best of {MAX_DRAWS} "
        f"draws {has} (partition.{option}={least[split]}); raise partition.{more}, use "
        f"fewer clients, or give more images (shots)"
    )


def _images(smallest: tuple[int, int, str]) -> str:
    images, _, split = smallest
    return f"{images or 'no'} {split} image{'s' * (images != 1)}"
