"""What a partition splits, and how a class is cut into whole images for each client."""

from dataclasses import dataclass

import numpy as np

Parts = list[np.ndarray]
"""Rows, an array a client."""


@dataclass(frozen=True)
class LabelledPool:
    """What is split: (N,) class labels, (N,) domain ids in order of appearance or
    None, the domains' names."""

    labels: np.ndarray
    domains: np.ndarray | None
    domain_names: tuple[str, ...]

    def rows(self, domain: int) -> np.ndarray:
        return np.flatnonzero(self.domains == domain)


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


def cut(rows: np.ndarray, counts: np.ndarray) -> Parts:
    """Cut rows into pieces of so many."""
    ends = [*np.cumsum(counts)[:-1].tolist(), len(rows)]
    return [rows[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def merge(pieces: list[Parts], clients: int) -> Parts:
    """Joins what each client got of each class."""
    empty = np.empty(0, dtype=np.int64)
    return [
        np.concatenate([empty, *(piece[client] for piece in pieces)]) for client in range(clients)
    ]


def by_class(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
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
        pieces.append(cut(rows, apportion(counts / counts.sum(), len(rows), owed)))
    return [np.sort(part) for part in merge(pieces, clients)]
