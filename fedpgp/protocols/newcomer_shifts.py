"""How the images of clients that never train differ from those of the others
(``protocol.shift``)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedpgp.data import Subset
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols.base import (
    ClientIndices,
    SplitRequest,
    all_classes,
    assign,
    domains_of,
    indices_of,
    splits,
    splits_by_domain,
)
from fedpgp.seeding import generator

SHIFTS = ("none", "label", "domain", "classes")
"""Values of ``protocol.shift``."""


def with_other_labels(
    request: SplitRequest, assigned: Sequence[ClientIndices], newcomers: Sequence[int], beta: float
) -> list[ClientIndices]:
    """Return the clients' images, those of the newcomers divided anew among them by
    Dirichlet(beta), inside domains where clients have one each."""
    own = [assigned[client] for client in newcomers]
    rows = [np.sort(np.concatenate([each.train for each in own]))]
    rows += [np.sort(np.concatenate([each.test for each in own]))]
    scheme = "domain_dirichlet" if splits_by_domain(request.scheme) else "dirichlet"
    least = {k: request.scheme[k] for k in ("min_size", "min_test_size") if k in request.scheme}
    again = replace(
        request, shots=None, scheme={"scheme": scheme, "beta": beta, "balance": False, **least}
    )
    mine = among(again, *rows, len(newcomers), all_classes(request.dataset))
    found = list(assigned)
    for client, each in zip(newcomers, mine, strict=True):
        found[client] = each
    return found


def by_domain(
    request: SplitRequest, newcomers: Sequence[int], domain: str | None, protocol: str
) -> list[ClientIndices]:
    """Return the clients' images: newcomers have those of one domain, the others have none of it.

    Raises:
        FedPGPError: no such domain, or none is named.
    """
    names, classes = domains_of(request.dataset, protocol), all_classes(request.dataset)
    if domain is None:
        raise FedPGPError(
            f"protocol.shift=domain needs protocol.unseen_domain, one of {', '.join(names)}"
        )
    if domain not in names:
        raise FedPGPError(unknown("protocol.unseen_domain", domain, names))
    parts = splits(request.dataset)
    new = [indices_of(split, classes, domain) for split in parts]
    old = [
        np.setdiff1d(np.arange(len(split)), rows) for split, rows in zip(parts, new, strict=True)
    ]
    return _divided(request, newcomers, (old, classes), (new, classes))


def by_class(
    request: SplitRequest, newcomers: Sequence[int], share: float
) -> tuple[list[ClientIndices], tuple[int, ...], tuple[int, ...]]:
    """Return the clients' images, and the classes of those that train and of newcomers: no class is
    of both.

    Raises:
        FedPGPError: a single class cannot be divided.
    """
    classes = all_classes(request.dataset)
    if len(classes) < 2:
        raise FedPGPError("protocol.shift=classes needs a data set of 2 classes or more")
    many = min(len(classes) - 1, max(1, round(share * len(classes))))
    drawn = generator(request.seed, "unseen classes").choice(len(classes), many, replace=False)
    new = tuple(sorted(drawn.tolist()))
    old = tuple(label for label in classes if label not in new)
    parts = splits(request.dataset)
    rows = [[indices_of(split, chosen) for split in parts] for chosen in (old, new)]
    return _divided(request, newcomers, (rows[0], old), (rows[1], new)), old, new


def among(
    request: SplitRequest,
    train: np.ndarray,
    test: np.ndarray,
    clients: int,
    classes: tuple[int, ...],
) -> list[ClientIndices]:
    """Return some images of the data set, by their rows, divided among so many clients."""
    parts = splits(request.dataset)
    some = [Subset(split, rows) for split, rows in zip(parts, (train, test), strict=True)]
    dataset = replace(request.dataset, train=some[0], test=some[1])
    return [
        replace(each, train=train[each.train], test=test[each.test])
        for each in assign(replace(request, dataset=dataset, clients=clients), classes)
    ]


Pool = tuple[Sequence[np.ndarray], tuple[int, ...]]
"""Rows of training and of test images, and the classes that they are of."""


def _divided(
    request: SplitRequest, newcomers: Sequence[int], old: Pool, new: Pool
) -> list[ClientIndices]:
    """The pool ``new`` among newcomers, ``old`` among the others."""
    others = [client for client in range(request.clients) if client not in set(newcomers)]
    found: dict[int, ClientIndices] = {}
    for clients, (rows, classes) in ((others, old), (newcomers, new)):
        found |= zip(clients, among(request, *rows, len(clients), classes), strict=True)
    return [found[client] for client in range(request.clients)]
