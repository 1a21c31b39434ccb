"""What an evaluation protocol decides: the classes that are learned, each client's images,
and what it is tested on.

A protocol is one file and one frozen dataclass, whose fields are its options;
``docs/protocols.md`` lists them all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedpgp.data import SCHEMES, Dataset, Split, partition
from fedpgp.data.subsets import few_shot
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.protocols.splits import EvalSet, FederatedSplit
from fedpgp.registry import Registry
from fedpgp.seeding import generator

Load = Callable[[Mapping], Dataset]
"""A data set by its name and options (``{"name": "emoji", "domains": "noto"}``), from where
the run finds its data."""

LABELS = ("all", "own")
TEMPLATES = ("dataset", "plain")
SELECTIONS = ("last", "last_five", "validation")


@dataclass(frozen=True)
class SplitRequest:
    """What a protocol splits over clients, and how.

    Attributes:
        dataset: with train and test split.
        clients: number of logical clients.
        seed: of everything random in it.
        shots: training images a class (a class and domain, where images are split by
            domain); None keeps all.
        scheme: the partition: ``scheme`` and its options.
        load: finds other data sets, for the protocols that need some; None where there are none.
    """

    dataset: Dataset
    clients: int
    seed: int
    shots: int | None
    scheme: Mapping
    load: Load | None = None


@dataclass(frozen=True)
class EvalProtocol(ABC):
    """A protocol and the options that all have.

    Attributes:
        local_labels: classes to choose among in local accuracy: ``all`` trained ones,
            or the client's ``own``.
        selection: which round is reported: the ``last``, the mean of the ``last_five``, or the best
            on a ``validation`` split (never on test images).
        template: of zero-shot CLIP: the ``dataset``'s, or ``plain`` ("a photo of a
            {}.") for every data set.
        validation_share: of a client's training images, kept out of training for
            ``selection=validation``.
    """

    name: ClassVar[str] = ""
    """As in ``conf/protocol/``; :func:`register` sets it."""
    parts: ClassVar[str | None] = None
    """The option that makes a run of its own of each of its values, when it is not set
    (``held_out``)."""
    images_arrive: ClassVar[bool] = False
    """Whether a client's own folder of images (``partition=own``) may grow during the run: the
    server takes the number of images that each reply tells."""

    local_labels: str = "all"
    selection: str = "last"
    template: str = "dataset"
    validation_share: float = 0.2

    def __post_init__(self):
        one_of("local_labels", self.local_labels, LABELS)
        one_of("selection", self.selection, SELECTIONS)
        one_of("template", self.template, TEMPLATES)
        check_number("protocol.validation_share", self.validation_share, above=0, below=1)

    @abstractmethod
    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        """Give every client its training images and its eval sets.

        Raises:
            FedPGPError: a data set or a partition that this protocol cannot work with.
        """

    def values(self, dataset: Dataset) -> Sequence[str]:
        """The values of the option :attr:`parts` with this data set."""
        return ()

    def finish(self, federated_split: FederatedSplit, seed: int) -> FederatedSplit:
        """What all protocols do alike: keep validation images out of training."""
        if self.selection != "validation":
            return federated_split
        if any(client_split.phases for client_split in federated_split.clients):
            raise FedPGPError(
                f"protocol.selection=validation cannot work with protocol {self.name}: what its "
                "clients train on changes, and rounds would be compared on images that are not "
                "there yet; use last or last_five"
            )
        labels = federated_split.dataset.train.labels
        client_splits = []
        for client, client_split in enumerate(federated_split.clients):
            if client_split.trains:
                kept = _hold_out(labels[client_split.train], self.validation_share, seed, client)
                eval_sets = {
                    **client_split.eval_sets,
                    "val": EvalSet(client_split.train[kept], client_split.classes, None, "train"),
                }
                client_split = replace(
                    client_split, train=np.delete(client_split.train, kept), eval_sets=eval_sets
                )
            client_splits.append(client_split)
        return replace(federated_split, clients=client_splits)


PROTOCOLS: Registry[type[EvalProtocol]] = Registry("fedpgp.protocols", EvalProtocol)
"""Name -> protocol. A new file in this folder needs no mention anywhere else."""

register = PROTOCOLS.register


def one_of(option: str, value: object, valid: Sequence[str | None]) -> None:
    """Refuses a value of an option that is none of the valid ones."""
    if value not in valid:
        raise FedPGPError(
            unknown(f"protocol.{option}", value, ["null" if v is None else v for v in valid])
        )


def _hold_out(labels: np.ndarray, fraction: float, seed: int, client: int) -> np.ndarray:
    """Positions of validation images: ``fraction`` of each class, at least one image
    in all, and never all."""
    if len(labels) < 2:
        raise FedPGPError(
            f"client {client} has {len(labels)} training image: selection=validation needs 2 or "
            "more (partition.min_size=2)"
        )
    order = generator(seed, "validation", client).permutation(len(labels))
    kept = []
    for label in np.unique(labels):
        mine = [i for i in order if labels[i] == label]
        kept += mine[: round(fraction * len(mine))]
    return np.sort(kept[: len(labels) - 1] or order[:1]).astype(np.int64)


# Splitting. ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClientIndices:
    """What the partition assigns to a client: indices of train and test images, its
    domain, the labels it has."""

    train: np.ndarray
    test: np.ndarray
    domain: str | None
    labels: tuple[int, ...]


def assign(request: SplitRequest, classes: Sequence[int]) -> list[ClientIndices]:
    """Assign the images of some classes to clients, train and test by the same draw.

    Args:
        request: what is split, and how.
        classes: labels that are assigned.

    Raises:
        FedPGPError: a data set without the split it needs; a partition that cannot work.
    """
    dataset, scheme = request.dataset, request.scheme
    train, test = splits(dataset)
    train_indices, test_indices = (indices_of(split, classes) for split in (train, test))
    by_domain = splits_by_domain(scheme) and train.domains is not None
    train_domains, test_domains = (
        None if s.domains is None else np.asarray(s.domains) for s in (train, test)
    )
    if request.shots is not None:
        keys = _shot_keys(dataset, train_indices, by_domain)
        train_indices = train_indices[few_shot(keys, request.shots, request.seed)]
    column = np.full(len(dataset.class_names), -1, dtype=np.int64)
    column[list(classes)] = np.arange(len(classes))
    options = {key: value for key, value in scheme.items() if key not in ("scheme", "name")}
    if scheme["scheme"] == "pachinko" and dataset.superclasses is not None:
        options["superclasses"] = dataset.superclasses[list(classes)]
    train_parts, test_parts = partition(
        column[train.labels[train_indices]],
        request.clients,
        scheme["scheme"],
        request.seed,
        domains=None if train_domains is None else train_domains[train_indices].tolist(),
        test_labels=column[test.labels[test_indices]],
        test_domains=None if test_domains is None else test_domains[test_indices].tolist(),
        **options,
    )
    assigned = []
    for mine, mine_test in zip(train_parts, test_parts, strict=True):
        rows = train_indices[mine]
        has = {int(label) for label in train.labels[rows]}
        assigned.append(
            ClientIndices(
                rows,
                test_indices[mine_test],
                str(train_domains[rows[0]]) if by_domain else None,
                tuple(label for label in classes if label in has),
            )
        )
    return assigned


def splits(dataset: Dataset) -> tuple[Split, Split]:
    """The train and test split.

    Raises:
        FedPGPError: one of them is not there.
    """
    if dataset.test is None:
        raise FedPGPError(f"data set {dataset.name} has no test images: nothing could be measured")
    if dataset.train is None:
        raise FedPGPError(
            f"data set {dataset.name} has no training images: it can only be evaluated on"
        )
    return dataset.train, dataset.test


def indices_of(split: Split, classes: Sequence[int], domain: str | None = None) -> np.ndarray:
    """Indices of the images of some classes, and of one domain when it is given."""
    chosen = np.isin(split.labels, list(classes))
    if domain is not None:
        chosen &= np.asarray(split.domains) == domain
    return np.flatnonzero(chosen)


def splits_by_domain(scheme: Mapping) -> bool:
    """Whether a partition gives every client images of one domain."""
    return scheme["scheme"] in SCHEMES and SCHEMES[scheme["scheme"]].by_domain


def domains_of(dataset: Dataset, protocol: str) -> list[str]:
    """The domains of a data set, in order of appearance in its test split.

    Raises:
        FedPGPError: it has none, or one.
    """
    names = list(dict.fromkeys(splits(dataset)[1].domains or ()))
    if len(names) < 2:
        raise FedPGPError(
            f"protocol {protocol} needs a data set with several domains (emoji, domainnet10, "
            f"office_caltech10 …); {dataset.name} has {len(names) or 'none'}"
        )
    return names


def all_classes(dataset: Dataset) -> tuple[int, ...]:
    """Every label of a data set."""
    return tuple(range(len(dataset.class_names)))


def local_eval_set(assigned: ClientIndices, classes: Sequence[int], local_labels: str) -> EvalSet:
    """The eval set of a client's own test images."""
    return EvalSet(
        assigned.test, tuple(classes), assigned.labels if local_labels == "own" else None
    )


def _shot_keys(dataset: Dataset, rows: np.ndarray, by_domain: bool) -> np.ndarray:
    """What ``shots`` counts images of: the class, or class and domain."""
    keys = dataset.train.labels[rows].astype(np.int64)
    if by_domain:
        _, domain_ids = np.unique(np.asarray(dataset.train.domains)[rows], return_inverse=True)
        keys = keys + len(dataset.class_names) * domain_ids
    return keys
