"""A data set split over clients: what each client trains on, in which round, and what its models
are tested on."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError


@dataclass(frozen=True)
class EvalSet:
    """Images that a client's models have to name, and the classes they choose among.

    Attributes:
        indices: of the images in the split, (n,) int64.
        classes: labels to choose among.
        allowed_labels: labels that may be answered, some of ``classes``; None is all.
        split: ``test``, or ``train`` for images kept out of training.
        since: the first round after which it counts; an evaluation before it has no such figure.
        until: the last; None: it counts to the end.
    """

    indices: np.ndarray
    classes: tuple[int, ...]
    allowed_labels: tuple[int, ...] | None = None
    split: str = "test"
    since: int = 0
    until: int | None = None

    def counts_after(self, server_round: int) -> bool:
        """Return whether an evaluation after this round has its figure."""
        return self.since <= server_round and (self.until is None or server_round <= self.until)


@dataclass(frozen=True)
class UnknownImages:
    """Test images of classes that a client does not know, to be told from those that it knows.

    Attributes:
        known: name of the eval set that holds images it knows, and the classes to choose among.
        indices: of the unknown images in the test split, (n,) int64, n > 0.
    """

    known: str
    indices: np.ndarray


@dataclass(frozen=True)
class Phase:
    """What a client trains on from a round on, in the place of what it had before.

    Attributes:
        since: the round, from 1.
        train: indices in the train split.
        classes: labels to choose among in training.
    """

    since: int
    train: np.ndarray
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ClientSplit:
    """The images of one logical client, and what it is tested on.

    Attributes:
        train: indices in the train split; of the first rounds, where there are ``phases``.
        classes: labels to choose among in training; likewise.
        eval_sets: figure -> eval set. ``local`` holds the client's own test images, ``unseen``
            those of a client that never trains; ``base`` and ``novel``; ``domains.NAME`` and
            ``datasets.NAME``; ``tasks.T.S``, task S after task T; ``val``, which only selects a
            round.
        domain: its domain, where images are split by domain.
        trains: False for a client that never trains.
        phases: how ``train`` and ``classes`` change, in the order of their rounds; empty: never.
        unknown: images of classes that it does not know; None where the protocol has none.

    Example:
        >>> late = Phase(3, np.arange(8), (0, 1))
        >>> client = ClientSplit(np.arange(0), (0, 1), {}, phases=(late,))
        >>> [len(client.train_at(server_round)) for server_round in (1, 2, 3, 4)]
        [0, 0, 8, 8]
    """

    train: np.ndarray
    classes: tuple[int, ...]
    eval_sets: dict[str, EvalSet]
    domain: str | None = None
    trains: bool = True
    phases: tuple[Phase, ...] = ()
    unknown: UnknownImages | None = None

    def train_at(self, server_round: int) -> np.ndarray:
        """Return the indices in the train split that the client trains on in a round."""
        phase = self.phase_at(server_round)
        return self.phases[phase - 1].train if phase else self.train

    def classes_at(self, server_round: int) -> tuple[int, ...]:
        """Return the labels that the client chooses among when it trains in a round."""
        phase = self.phase_at(server_round)
        return self.phases[phase - 1].classes if phase else self.classes

    def eval_sets_at(self, server_round: int) -> dict[str, EvalSet]:
        """Return the eval sets that count in an evaluation after a round (0: before training)."""
        return {
            figure: eval_set
            for figure, eval_set in self.eval_sets.items()
            if eval_set.counts_after(server_round)
        }

    def is_tested_after(self, server_round: int) -> bool:
        """Return whether some eval set counts in an evaluation after a round."""
        return any(each.counts_after(server_round) for each in self.eval_sets.values())

    def phase_at(self, server_round: int) -> int:
        """Return how many of its phases have begun in a round: 0 before the first."""
        return sum(phase.since <= server_round for phase in self.phases)

    @property
    def train_indices(self) -> np.ndarray:
        """Indices in the train split that it trains on in some round."""
        if not self.phases:
            return self.train
        return np.unique(np.concatenate([self.train, *(phase.train for phase in self.phases)]))

    @property
    def local_eval_set(self) -> EvalSet | None:
        """The eval set of its own test images; None where it is only tested on other data."""
        return self.eval_sets.get("local" if self.trains else "unseen")

    @property
    def test(self) -> np.ndarray:
        """Indices of its own test images."""
        return (
            np.empty(0, dtype=np.int64)
            if self.local_eval_set is None
            else self.local_eval_set.indices
        )


@dataclass(frozen=True)
class LifelongTask:
    """One of the tasks that come one after the other.

    Attributes:
        name: for people.
        classes: labels that it has images of.
        last_round: the round after which the next one begins, and all tasks are tested.
    """

    name: str
    classes: tuple[int, ...]
    last_round: int


@dataclass(frozen=True)
class FederatedSplit:
    """A data set split over clients.

    Attributes:
        dataset: what the indices and labels are of; several data sets joined, where
            a protocol needs several.
        base_classes: labels that some client trains.
        novel_classes: labels nobody trains, of the eval set of that name; empty
            where the protocol has none.
        clients: one entry a client.
        adapt_epochs: epochs for which a client that never trains adapts its copy before it is
            tested.
        private_data: the images are the clients' own (:mod:`fedpgp.private_data`): nobody
            else may know their labels.
        tasks: that come one after the other, in their order; empty where the protocol has none. A
            run has as many rounds as they take, and is evaluated after each.
    """

    dataset: Dataset
    base_classes: tuple[int, ...]
    novel_classes: tuple[int, ...]
    clients: list[ClientSplit]
    adapt_epochs: int = 0
    private_data: bool = False
    tasks: tuple[LifelongTask, ...] = ()

    @property
    def phases(self) -> int:
        """The most phases that a client goes through; 1 where nothing changes."""
        return 1 + max((len(client_split.phases) for client_split in self.clients), default=0)

    def ends_task(self, server_round: int) -> bool:
        """Return whether a task ends with this round."""
        return any(task.last_round == server_round for task in self.tasks)

    def check_rounds(self, rounds: int) -> None:
        """Refuse a number of rounds that is not that of the tasks.

        Raises:
            FedPGPError: with the right number.
        """
        if self.tasks and rounds != self.tasks[-1].last_round:
            raise FedPGPError(
                f"rounds={rounds}: {len(self.tasks)} tasks of {self.tasks[0].last_round} rounds "
                f"take rounds={self.tasks[-1].last_round}; set that, or "
                "protocol.rounds_per_task"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of which client owns and is tested on which images, and of their labels;
        the same on every machine that has the same list of images, wherever they lie."""
        digest, known = hashlib.sha256(), {}

        def rows(array: np.ndarray) -> bytes:
            if id(array) not in known:  # a test on all images is one array for all clients
                known[id(array)] = hashlib.sha256(np.asarray(array, dtype="<i8").tobytes()).digest()
            return known[id(array)]

        for part in ("train", "val", "test"):
            if (split := getattr(self.dataset, part)) is not None:
                digest.update(part.encode() + rows(split.labels))
        for client_split in self.clients:
            digest.update(
                f"{client_split.classes} {client_split.domain} {client_split.trains} ".encode()
                + rows(client_split.train)
            )
            for phase in client_split.phases:
                digest.update(f"{phase.since} {phase.classes} ".encode() + rows(phase.train))
            for figure, eval_set in sorted(client_split.eval_sets.items()):
                since = f"since {eval_set.since} " if eval_set.since else ""
                since += "" if eval_set.until is None else f"until {eval_set.until} "
                digest.update(
                    f"{figure} {eval_set.split} {eval_set.classes} {eval_set.allowed_labels} "
                    f"{since}".encode()
                    + rows(eval_set.indices)
                )
        return digest.hexdigest()

    @cached_property
    def trainers(self) -> int:
        """How many clients train in some round: all whose images nobody else knows."""
        return sum(
            self.private_data
            or client.trains
            and any(len(part.train) for part in (client, *client.phases))
            for client in self.clients
        )

    def after(self, rounds: int) -> int | None:
        """The first round after these many in which a client's images change, or an eval set begins
        to count; None where there is none."""
        starts = [
            each.since
            for client_split in self.clients
            for each in (*client_split.phases, *client_split.eval_sets.values())
        ]
        return min((since for since in starts if since > rounds), default=None)

    @property
    def train_indices(self) -> np.ndarray:
        """Indices in the train split that some client trains on, or is tested on, ascending."""
        eval_sets = [
            eval_set.indices
            for client_split in self.clients
            for eval_set in client_split.eval_sets.values()
            if eval_set.split == "train"
        ]
        return np.unique(
            np.concatenate(
                [
                    np.empty(0, np.int64),
                    *(client_split.train_indices for client_split in self.clients),
                    *eval_sets,
                ]
            )
        )
