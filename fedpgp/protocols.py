"""Protocols: which classes are learned, who is given which images, and on what each client is tested.

``base2novel``: the first half of the classes (base) is dealt to the clients; the second half (novel) nobody sees. A
client's prompt is scored on its own test share (local), on the base classes and on the novel ones. ``personal``: all
classes are dealt; a client's prompt is scored on its own test share.

With a partition by domain, base and novel are taken from the client's own domain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpgp.data import Dataset, partition
from fedpgp.data.subsets import base_novel, few_shot
from fedpgp.errors import FedPGPError, unknown

PROTOCOLS = ("base2novel", "personal")
OPTIONS = ("name", "base", "local_labels", "class_order")


@dataclass(frozen=True)
class ClientShare:
    """What one logical client owns and is tested on: rows of the train split and of the test split.

    Attributes:
        train: its training images.
        test: its own test share (its classes and proportions; local accuracy).
        base, novel: test images for base and novel accuracy; None where the protocol has none.
        domain: its domain, where images are dealt by domain.
        own_classes: candidate columns of the classes it trains on.
    """

    train: np.ndarray
    test: np.ndarray
    base: np.ndarray | None
    novel: np.ndarray | None
    domain: str | None
    own_classes: np.ndarray


@dataclass(frozen=True)
class Deal:
    """A dealt data set.

    Attributes:
        base_classes: labels that are trained and are the candidates of local and base accuracy.
        novel_classes: labels nobody trains; empty where the protocol has none.
        shares: one a client.
    """

    base_classes: tuple[int, ...]
    novel_classes: tuple[int, ...]
    shares: list[ClientShare]


def deal(dataset: Dataset, clients: int, seed: int, shots: int | None, protocol: Mapping, scheme: Mapping) -> Deal:
    """Deals a data set to clients.

    Args:
        dataset: with train and test split.
        clients: number of logical clients.
        seed: of the few-shot sample and the partition.
        shots: training images a class (a class and domain, where images are dealt by domain); None keeps all.
        protocol: ``name`` and its options ``base`` (``all`` or ``others``: without the client's own classes),
            ``class_order``.
        scheme: the partition: ``scheme`` and its options.

    Raises:
        FedPGPError: unknown protocol or option; a data set without the split it needs; a partition that cannot work.
    """
    name = protocol["name"]
    if name not in PROTOCOLS:
        raise FedPGPError(unknown("protocol", name, PROTOCOLS))
    for option in protocol:
        if option not in OPTIONS:
            raise FedPGPError(unknown("setting of protocol", option, OPTIONS))
    if protocol.get("base", "all") not in ("all", "others"):
        raise FedPGPError(unknown("protocol.base", protocol["base"], ["all", "others"]))
    if dataset.test is None:
        raise FedPGPError(f"data set {dataset.name} has no test images: nothing could be measured")
    if dataset.train is None:
        raise FedPGPError(f"data set {dataset.name} has no training images: it can only be evaluated on")
    base = tuple(range(len(dataset.class_names)))
    novel: tuple[int, ...] = ()
    if name == "base2novel":
        base, novel = (
            tuple(ids) for ids in base_novel(dataset.class_names, order=protocol.get("class_order", "label"))
        )
    train, test = dataset.train, dataset.test
    train_rows, test_rows = (np.flatnonzero(np.isin(split.labels, base)) for split in (train, test))
    by_domain = scheme["scheme"].startswith("domain")
    train_domains, test_domains = (None if s.domains is None else np.asarray(s.domains) for s in (train, test))
    if shots is not None:
        keys = train.labels[train_rows].astype(np.int64)
        if by_domain and train_domains is not None:
            _, domain_ids = np.unique(train_domains[train_rows], return_inverse=True)
            keys = keys + len(dataset.class_names) * domain_ids
        train_rows = train_rows[few_shot(keys, shots, seed)]
    column = np.full(len(dataset.class_names), -1, dtype=np.int64)
    column[list(base)] = np.arange(len(base))
    options = {key: value for key, value in scheme.items() if key not in ("scheme", "name")}
    if scheme["scheme"] == "pachinko" and dataset.superclasses is not None:
        options["superclasses"] = dataset.superclasses[list(base)]
    train_parts, test_parts = partition(
        column[train.labels[train_rows]],
        clients,
        scheme["scheme"],
        seed,
        domains=None if train_domains is None else train_domains[train_rows].tolist(),
        test_labels=column[test.labels[test_rows]],
        test_domains=None if test_domains is None else test_domains[test_rows].tolist(),
        **options,
    )
    novel_rows = np.flatnonzero(np.isin(test.labels, novel))
    shares = []
    for mine, mine_test in zip(train_parts, test_parts, strict=True):
        rows = train_rows[mine]
        domain = str(train_domains[rows[0]]) if by_domain and train_domains is not None else None
        own = np.unique(column[train.labels[rows]])
        base_test, novel_test = test_rows, novel_rows
        if domain is not None:
            base_test, novel_test = (r[test_domains[r] == domain] for r in (base_test, novel_test))
        if protocol.get("base", "all") == "others":
            base_test = base_test[~np.isin(column[test.labels[base_test]], own)]
        for what, rows_of in (("base", base_test), ("novel", novel_test)):
            if novel and not len(rows_of):
                raise FedPGPError(
                    f"client {len(shares)} has no test image for {what} accuracy with protocol.base="
                    f"{protocol.get('base', 'all')} and partition={scheme['scheme']}: 'others' needs classes dealt "
                    "without overlap (partition=pathological); else use protocol.base=all, or data with test images of "
                    "both halves of the classes in every domain"
                )
        shares.append(
            ClientShare(
                rows,
                test_rows[mine_test],
                base_test if novel else None,
                novel_test if novel else None,
                domain,
                own,
            )
        )
    return Deal(base, novel, shares)
