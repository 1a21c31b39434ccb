"""``lifelong``: tasks come one after the other, and after each all of them are tested.

A task is some classes, a domain or a data set; inside a task the run's partition splits the images
over the clients. Which task an image is of is told to nobody: clients train and answer among all
classes seen so far. The accuracy on task s after task t is the figure ``tasks.t.s``, for zero-shot
CLIP, the global and the personal prompt (:mod:`fedpgp.evaluation.lifelong`). Before a task has
come, its classes are added to those seen: the candidates are the classes of tasks 1 to max(t, s).

On the embedded federation the domains are the six vendors, the data sets eight groups of emoji.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from fedpgp.data import Dataset, Split, Subset
from fedpgp.data.joint import join
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.protocols.base import (
    ClientIndices,
    EvalProtocol,
    SplitRequest,
    all_classes,
    assign,
    domains_of,
    one_of,
    register,
    splits,
    splits_by_domain,
)
from fedpgp.protocols.cross_class import GROUPS, NINE
from fedpgp.protocols.cross_dataset import Spec, as_specs, label_of
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit, LifelongTask, Phase
from fedpgp.seeding import generator

KINDS = ("class", "domain", "dataset")
ARRIVALS = ("together", "staggered", "joint")
DEFAULT_TASKS = 5
"""Tasks of classes, where nothing is said."""
NOTHING = np.empty(0, dtype=np.int64)

Unit = Hashable
"""What a task is made of: a label, or the name of a domain."""


@register("lifelong")
@dataclass(frozen=True)
class Lifelong(EvalProtocol):
    """Options: ``by``, what a task is: some classes, a domain or a data set. ``tasks``: their
    number, in an order drawn from the seed; or a list of them, in its order; None is five of
    classes, one a domain, one a data set. ``rounds_per_task``. ``arrival``: all clients switch
    ``together``; each at a round of its own in a task's period, drawn from the seed
    (``staggered``); or all tasks are there from the first round (``joint``, a baseline).
    ``test_images``: the client's ``own`` of a task, or ``all``. ``absent``: fraction of the clients
    that have no image of a task, drawn anew for each. ``leaving``: fraction of the clients that
    leave for good after a task drawn from the seed.

    A class or domain that several tasks of a list name returns: its images are divided evenly
    between them.
    """

    by: str = "class"
    tasks: int | Sequence | None = None
    rounds_per_task: int = 5
    arrival: str = "together"
    test_images: str = "own"
    absent: float = 0.0
    leaving: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        one_of("by", self.by, KINDS)
        one_of("arrival", self.arrival, ARRIVALS)
        one_of("test_images", self.test_images, ("own", "all"))
        check_number("protocol.rounds_per_task", self.rounds_per_task, least=1, whole=True)
        check_number("protocol.absent", self.absent, least=0, below=1)
        check_number("protocol.leaving", self.leaving, least=0, below=1)
        if isinstance(self.tasks, str) or not isinstance(self.tasks, Sequence | None):
            check_number("protocol.tasks", self.tasks, least=2, whole=True)
        elif self.tasks is not None and len(self.tasks) < 2:
            raise FedPGPError(
                f"protocol.tasks={list(self.tasks)} names fewer than 2 tasks: one task is "
                "protocol=personal"
            )
        if self.arrival == "staggered" and self.rounds_per_task < 2:
            raise FedPGPError(
                "protocol.arrival=staggered needs protocol.rounds_per_task=2 or more: clients "
                "switch at different rounds of a task"
            )

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset, names, units = self._planned(request)
        request = replace(request, dataset=dataset)
        train, test = splits(dataset)
        parts = [_divided(self._units(part), units, request.seed) for part in (train, test)]
        classes = [tuple(sorted(set(train.labels[rows].tolist()))) for rows in parts[0]]
        for name, own in zip(names, classes, strict=True):
            if not own:
                raise FedPGPError(
                    f"task {name} of protocol.tasks has no training image: give a class that "
                    "returns more images, or leave it out"
                )
        seen = [tuple(sorted(ids)) for ids in accumulate(map(set, classes), set.union)]
        whole = [
            rows[np.isin(test.labels[rows], own)]
            for rows, own in zip(parts[1], classes, strict=True)
        ]
        assigned = [
            self._assign(request, task, *about)
            for task, about in enumerate(zip(classes, parts[0], whole, strict=True))
        ]
        tasks = tuple(map(LifelongTask, names, classes, self._ends(len(names))))
        leaves = self._leaves(request, len(tasks))
        clients = []
        for client, own in enumerate(zip(*assigned, strict=True)):
            stays = leaves.get(client, len(tasks))
            tested = [each.test for each in own] if self.test_images == "own" else whole
            clients.append(self._client(request.seed, client, own, tested, seen, stays))
        return FederatedSplit(dataset, seen[-1], (), clients, tasks=tasks)

    def _client(
        self,
        seed: int,
        client: int,
        own: Sequence[ClientIndices],
        tested: Sequence[np.ndarray],
        seen: Sequence[tuple[int, ...]],
        stays: int,
    ) -> ClientSplit:
        """Return the split of a client.

        Args:
            seed: of the run.
            client: its number.
            own: its images of each task.
            tested: the test images of each task.
            seen: the classes seen by the end of each task.
            stays: tasks after which it leaves.
        """
        ends = self._ends(len(own))
        until = ends[stays - 1] if stays < len(own) else None
        known = seen[-1 if self.arrival == "joint" else stays - 1]
        gone = () if until is None else (Phase(until + 1, NOTHING, known),)
        local = np.sort(np.concatenate([each.test for each in own]))
        labels = tuple(sorted({label for each in own for label in each.labels}))
        allowed = labels if self.local_labels == "own" else None
        eval_sets = {"local": EvalSet(local, seen[-1], allowed, until=until)}
        for task in range(stays):
            for other, rows in enumerate(tested):
                if len(rows):
                    eval_sets[f"tasks.{task + 1}.{other + 1}"] = EvalSet(
                        rows, seen[max(task, other)], since=ends[task], until=ends[task]
                    )
        domains = {each.domain for each in own} - {None}
        domain = domains.pop() if len(domains) == 1 else None
        if self.arrival == "joint":
            first = np.sort(np.concatenate([each.train for each in own]))
            return ClientSplit(first, seen[-1], eval_sets, domain, phases=gone)
        since = [end + 1 for end in ends[:-1]]
        if self.arrival == "staggered":
            late = generator(seed, "staggered arrival", client).integers(
                self.rounds_per_task, size=len(since)
            )
            since = [start + int(by) for start, by in zip(since, late, strict=True)]
        later = zip(since, own[1:stays], seen[1:], strict=False)
        phases = tuple(Phase(start, each.train, classes) for start, each, classes in later)
        return ClientSplit(own[0].train, seen[0], eval_sets, domain, phases=(*phases, *gone))

    def _planned(self, request: SplitRequest) -> tuple[Dataset, list[str], list[tuple[Unit, ...]]]:
        """Return the data set, and the name and the units of each task in order."""
        dataset = request.dataset
        if self.by == "dataset":
            return self._data_sets(request)
        named = dataset.class_names if self.by == "class" else domains_of(dataset, self.name)
        units = list(all_classes(dataset)) if self.by == "class" else named
        if isinstance(self.tasks, Sequence):
            tasks = [self._named(entry, named, units) for entry in self.tasks]
        else:
            usual = DEFAULT_TASKS if self.by == "class" else len(units)
            many = usual if self.tasks is None else self.tasks
            if many > len(units):
                raise FedPGPError(
                    f"protocol.tasks={many}: data set {dataset.name} has {len(units)} "
                    f"{'classes' if self.by == 'class' else 'domains'}; a task needs one"
                )
            order = generator(request.seed, "order of tasks").permutation(len(units))
            tasks = [tuple(units[i] for i in sorted(part)) for part in np.array_split(order, many)]
        if self.by == "class":
            return dataset, [str(task + 1) for task in range(len(tasks))], tasks
        return dataset, [", ".join(map(str, task)) for task in tasks], tasks

    def _named(
        self, entry: object, names: Sequence[str], units: Sequence[Unit]
    ) -> tuple[Unit, ...]:
        """Return the units of one entry of ``tasks``: names, or labels of classes."""
        entries = [entry] if isinstance(entry, str | int | float) else list(entry or ())
        for each in entries:
            if each not in names and (self.by == "domain" or each not in units):
                what = "class" if self.by == "class" else "domain"
                raise FedPGPError(unknown(f"{what} in protocol.tasks", each, names))
        if not entries:
            raise FedPGPError("protocol.tasks has a task without a class or domain: name some")
        return tuple(
            unit
            for unit, name in zip(units, names, strict=True)
            if name in entries or unit in entries
        )

    def _data_sets(
        self, request: SplitRequest
    ) -> tuple[Dataset, list[str], list[tuple[Unit, ...]]]:
        """Return the joint data set and its members, in the order of their tasks."""
        own = request.dataset.name
        usual: Sequence[str | Spec] = (
            [{"name": "emoji", "groups": [g]} for g in GROUPS] if own == "emoji" else NINE
        )
        listed = isinstance(self.tasks, Sequence)
        specs = as_specs(self.tasks if listed else usual, "tasks")
        if own not in (spec["name"] for spec in specs):
            raise FedPGPError(
                f"protocol.tasks does not name {own}: the run's own data set is one of the tasks' "
                f"({', '.join(str(spec['name']) for spec in specs)})"
            )
        if not listed:
            many = len(specs) if self.tasks is None else self.tasks
            if many > len(specs):
                raise FedPGPError(
                    f"protocol.tasks={many}: there are {len(specs)} usual data sets; name others "
                    "in a list"
                )
            order = generator(request.seed, "order of tasks").permutation(len(specs))
            specs = [specs[i] for i in order[:many]]
        labels = [label_of(spec) for spec in specs]
        joint, members = join([request.load(spec) for spec in specs], labels)
        return joint, labels, [member.classes for member in members]

    def _units(self, split: Split) -> np.ndarray:
        """Return the unit of each image of a split."""
        return np.asarray(split.domains) if self.by == "domain" else split.labels

    def _ends(self, tasks: int) -> list[int]:
        """Return the last round of each task."""
        return [self.rounds_per_task * (task + 1) for task in range(tasks)]

    def _leaves(self, request: SplitRequest, tasks: int) -> dict[int, int]:
        """Return the clients that leave: client -> tasks after which it does."""
        rng = generator(request.seed, "leaving")
        clients = _drawn(rng, request.clients, self.leaving)
        return {client: int(rng.integers(1, tasks)) for client in clients}

    def _assign(
        self,
        request: SplitRequest,
        task: int,
        classes: Sequence[int],
        train_rows: np.ndarray,
        test_rows: np.ndarray,
    ) -> list[ClientIndices]:
        """Assign the images of one task to clients, by a draw of its own."""
        dataset = request.dataset
        train, test = splits(dataset)
        if splits_by_domain(request.scheme) and train.domains is not None:
            train_rows = _by_domain(train, train_rows)
        own = replace(dataset, train=Subset(train, train_rows), test=Subset(test, test_rows))
        seed = int(generator(request.seed, "partition of a task", task).integers(2**31))
        try:
            parts = assign(replace(request, dataset=own, seed=seed), classes)
        except FedPGPError as error:
            raise FedPGPError(f"task {task + 1}: {error}") from error
        absent = _drawn(generator(request.seed, "absent", task), request.clients, self.absent)
        return [
            ClientIndices(NOTHING, NOTHING, None, ())
            if client in absent
            else replace(part, train=np.sort(train_rows[part.train]), test=test_rows[part.test])
            for client, part in enumerate(parts)
        ]


def _drawn(rng: np.random.Generator, clients: int, share: float) -> list[int]:
    """Return a share of the clients, never all of them."""
    many = min(clients - 1, round(share * clients))
    return sorted(rng.choice(clients, size=many, replace=False).tolist())


def _divided(units: np.ndarray, tasks: Sequence[tuple[Unit, ...]], seed: int) -> list[np.ndarray]:
    """Return the rows of each task, ascending; those of a unit of several tasks are divided evenly
    between them."""
    found: list[list[np.ndarray]] = [[np.empty(0, dtype=np.int64)] for _ in tasks]
    for unit in dict.fromkeys(unit for task in tasks for unit in task):
        rows = np.flatnonzero(units == unit)
        of = [i for i, task in enumerate(tasks) if unit in task]
        if len(of) > 1:
            rows = generator(seed, f"returning {unit}").permutation(rows)
        for i, part in zip(of, np.array_split(rows, len(of)), strict=True):
            found[i].append(part)
    return [np.sort(np.concatenate(parts)) for parts in found]


def _by_domain(split: Split, rows: np.ndarray) -> np.ndarray:
    """Return the rows in the order of their domains in the whole split: domains are numbered by
    their first image, and a client keeps its domain from task to task."""
    domains = np.asarray(split.domains)
    names, first = np.unique(domains, return_index=True)
    place = np.empty(len(names), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(names))
    return rows[np.argsort(place[np.searchsorted(names, domains[rows])], kind="stable")]
