"""What a protocol decides: which classes are learned, who is given which images, and on what each client is tested.

A protocol is one file and one frozen dataclass, whose fields are its options; ``docs/protocols.md`` lists them all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedpgp.data import BY_DOMAIN, Dataset, Split, partition
from fedpgp.data.subsets import few_shot
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.seeding import generator

Load = Callable[[Mapping], Dataset]
"""A data set by its name and options (``{"name": "emoji", "domains": "noto"}``), from where the run finds its data."""

LABELS = ("all", "own")
TEMPLATES = ("dataset", "plain")
SELECTIONS = ("last", "last_five", "validation")


@dataclass(frozen=True)
class Exam:
    """Pictures that a client's models have to name.

    Attributes:
        rows: of the split.
        classes: labels of the candidates.
        allowed: labels that may be answered, some of ``classes``; None is all.
        split: ``test``, or ``train`` for images kept out of training.
    """

    rows: np.ndarray
    classes: tuple[int, ...]
    allowed: tuple[int, ...] | None = None
    split: str = "test"


@dataclass(frozen=True)
class ClientShare:
    """What one logical client owns and is tested on.

    Attributes:
        train: rows of the train split.
        classes: labels of the candidates in training.
        exams: figure -> exam. ``local`` is the client's own test share, ``unseen`` that of a client that never trains;
            ``base`` and ``novel``; ``domains.NAME`` and ``datasets.NAME``; ``val``, which only selects a round.
        domain: its domain, where images are dealt by domain.
        trains: False for a client that never trains.
    """

    train: np.ndarray
    classes: tuple[int, ...]
    exams: dict[str, Exam]
    domain: str | None = None
    trains: bool = True

    @property
    def own(self) -> Exam | None:
        """The exam on its own test share; None where it is only tested on other data."""
        return self.exams.get("local" if self.trains else "unseen")

    @property
    def test(self) -> np.ndarray:
        """Rows of its own test share."""
        return np.empty(0, dtype=np.int64) if self.own is None else self.own.rows


@dataclass(frozen=True)
class Deal:
    """A dealt data set.

    Attributes:
        dataset: what the rows and labels are of; several data sets joined, where a protocol needs several.
        base_classes: labels that some client trains.
        novel_classes: labels nobody trains, of the exam of that name; empty where the protocol has none.
        shares: one a client.
        adapt_epochs: epochs for which a client that never trains adapts its copy before it is tested.
        own: the pictures are the clients' own (:mod:`fedpgp.own`): nobody else may know their labels.
    """

    dataset: Dataset
    base_classes: tuple[int, ...]
    novel_classes: tuple[int, ...]
    shares: list[ClientShare]
    adapt_epochs: int = 0
    own: bool = False

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of the train split that some client trains on, or is tested on, ascending."""
        exams = [exam.rows for share in self.shares for exam in share.exams.values() if exam.split == "train"]
        return np.unique(np.concatenate([np.empty(0, np.int64), *(share.train for share in self.shares), *exams]))


@dataclass(frozen=True)
class Protocol(ABC):
    """A protocol and the options that all have.

    Attributes:
        local_labels: candidates of local accuracy: ``all`` trained classes, or the client's ``own``.
        selection: which round is reported: the ``last``, the mean of the ``last_five``, or the best on a
            ``validation`` split (never on test images).
        template: of zero-shot CLIP: the ``dataset``'s, or ``plain`` ("a photo of a {}.") for every data set.
        validation_share: of a client's training images, kept out of training for ``selection=validation``.
    """

    name: ClassVar[str]
    parts: ClassVar[str | None] = None
    """The option that makes a run of its own of each of its values, when it is not set (``held_out``)."""

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
    def deal(
        self, dataset: Dataset, clients: int, seed: int, shots: int | None, scheme: Mapping, load: Load
    ) -> Deal: ...

    def values(self, dataset: Dataset) -> Sequence[str]:
        """The values of the option :attr:`parts` with this data set."""
        return ()

    def finish(self, dealt: Deal, seed: int) -> Deal:
        """What all protocols do alike to a deal: keeps validation images out of training."""
        if self.selection != "validation":
            return dealt
        labels = dealt.dataset.train.labels
        shares = []
        for client, share in enumerate(dealt.shares):
            if share.trains:
                kept = _hold_out(labels[share.train], self.validation_share, seed, client)
                exams = {**share.exams, "val": Exam(share.train[kept], share.classes, None, "train")}
                share = replace(share, train=np.delete(share.train, kept), exams=exams)
            shares.append(share)
        return replace(dealt, shares=shares)


def one_of(option: str, value: object, valid: Sequence[str | None]) -> None:
    """Refuses a value of an option that is none of the valid ones."""
    if value not in valid:
        raise FedPGPError(unknown(f"protocol.{option}", value, ["null" if v is None else v for v in valid]))


def _hold_out(labels: np.ndarray, share: float, seed: int, client: int) -> np.ndarray:
    """Positions of validation images: ``share`` of each class, at least one image in all, and never all."""
    if len(labels) < 2:
        raise FedPGPError(
            f"client {client} has {len(labels)} training image: selection=validation needs 2 or more "
            "(partition.min_size=2)"
        )
    order = generator(seed, "validation", client).permutation(len(labels))
    kept = []
    for label in np.unique(labels):
        mine = [i for i in order if labels[i] == label]
        kept += mine[: round(share * len(mine))]
    return np.sort(kept[: len(labels) - 1] or order[:1]).astype(np.int64)


# Dealing. -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hand:
    """What the partition gives a client: rows of train and test, its domain, and the labels it has."""

    train: np.ndarray
    test: np.ndarray
    domain: str | None
    labels: tuple[int, ...]


def hands(
    dataset: Dataset, classes: Sequence[int], clients: int, seed: int, shots: int | None, scheme: Mapping
) -> list[Hand]:
    """Deals the images of some classes to clients, train and test by the same draw.

    Args:
        dataset: with train and test split.
        classes: labels that are dealt.
        clients: number of logical clients.
        seed: of the few-shot sample and the partition.
        shots: training images a class (a class and domain, where images are dealt by domain); None keeps all.
        scheme: the partition: ``scheme`` and its options.

    Raises:
        FedPGPError: a data set without the split it needs; a partition that cannot work.
    """
    train, test = splits(dataset)
    train_rows, test_rows = (rows_of(split, classes) for split in (train, test))
    by_domain = deals_by_domain(scheme) and train.domains is not None
    train_domains, test_domains = (None if s.domains is None else np.asarray(s.domains) for s in (train, test))
    if shots is not None:
        train_rows = train_rows[few_shot(_shot_keys(dataset, train_rows, by_domain), shots, seed)]
    column = np.full(len(dataset.class_names), -1, dtype=np.int64)
    column[list(classes)] = np.arange(len(classes))
    options = {key: value for key, value in scheme.items() if key not in ("scheme", "name")}
    if scheme["scheme"] == "pachinko" and dataset.superclasses is not None:
        options["superclasses"] = dataset.superclasses[list(classes)]
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
    dealt = []
    for mine, mine_test in zip(train_parts, test_parts, strict=True):
        rows = train_rows[mine]
        has = {int(label) for label in train.labels[rows]}
        dealt.append(
            Hand(
                rows,
                test_rows[mine_test],
                str(train_domains[rows[0]]) if by_domain else None,
                tuple(label for label in classes if label in has),
            )
        )
    return dealt


def splits(dataset: Dataset) -> tuple[Split, Split]:
    """The train and test split.

    Raises:
        FedPGPError: one of them is not there.
    """
    if dataset.test is None:
        raise FedPGPError(f"data set {dataset.name} has no test images: nothing could be measured")
    if dataset.train is None:
        raise FedPGPError(f"data set {dataset.name} has no training images: it can only be evaluated on")
    return dataset.train, dataset.test


def rows_of(split: Split, classes: Sequence[int], domain: str | None = None) -> np.ndarray:
    """Rows of the images of some classes, and of one domain when it is given."""
    chosen = np.isin(split.labels, list(classes))
    if domain is not None:
        chosen &= np.asarray(split.domains) == domain
    return np.flatnonzero(chosen)


def deals_by_domain(scheme: Mapping) -> bool:
    """Whether a partition gives every client images of one domain."""
    return scheme["scheme"] in BY_DOMAIN


def domains_of(dataset: Dataset, protocol: str) -> list[str]:
    """The domains of a data set, in order of appearance in its test split.

    Raises:
        FedPGPError: it has none, or one.
    """
    names = list(dict.fromkeys(splits(dataset)[1].domains or ()))
    if len(names) < 2:
        raise FedPGPError(
            f"protocol {protocol} needs a data set with several domains (emoji, domainnet10, office_caltech10 …); "
            f"{dataset.name} has {len(names) or 'none'}"
        )
    return names


def all_classes(dataset: Dataset) -> tuple[int, ...]:
    """Every label of a data set."""
    return tuple(range(len(dataset.class_names)))


def local_exam(hand: Hand, classes: Sequence[int], local_labels: str) -> Exam:
    """The exam on a client's own test share."""
    return Exam(hand.test, tuple(classes), hand.labels if local_labels == "own" else None)


def _shot_keys(dataset: Dataset, rows: np.ndarray, by_domain: bool) -> np.ndarray:
    """What ``shots`` counts images of: the class, or class and domain."""
    keys = dataset.train.labels[rows].astype(np.int64)
    if by_domain:
        _, domain_ids = np.unique(np.asarray(dataset.train.domains)[rows], return_inverse=True)
        keys = keys + len(dataset.class_names) * domain_ids
    return keys
