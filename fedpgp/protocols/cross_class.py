"""``cross_class``: one federation over several data sets; every client has a block of classes
of one of them (FedTPG).

The first half of each data set's classes (base) is cut into blocks of consecutive classes, a
block a client, about as many classes in every block; the second half (novel) nobody sees. A
client trains and answers among its own classes (local); its prompt is also scored on all base and
all novel classes of its data set. FedTPG: nine data sets, blocks of about 20 classes
(``clients=30``), 8 shots.

On the embedded federation the data sets are eight groups of emoji (animals, food, faces …).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.data import Dataset
from fedpgp.data.joint import Member, join
from fedpgp.data.subsets import CLASS_ORDERS, base_novel, few_shot
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    EvalProtocol,
    SplitRequest,
    one_of,
    register,
    splits,
)
from fedpgp.protocols.cross_dataset import Spec, as_specs, label_of
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit, UnknownImages

NINE = (
    *(
        "caltech101",
        "oxford_pets",
        "stanford_cars",
        "flowers102",
        "food101",
        "fgvc_aircraft",
        "sun397",
        "dtd",
    ),
    "ucf101",
)
GROUPS = ("animals", "food", "people", "faces", "travel", "activities", "objects", "symbols")


@register("cross_class")
@dataclass(frozen=True)
class CrossClass(EvalProtocol):
    """Options: ``datasets`` of the federation, names or mappings of ``name`` and options, the
    run's own among them; None takes the usual ones. ``class_order``, what the halves go by:
    ``label`` or ``alphabet``."""

    local_labels: str = "own"
    datasets: Sequence[str | Spec] | None = None
    class_order: str = "label"

    def __post_init__(self):
        super().__post_init__()
        one_of("class_order", self.class_order, CLASS_ORDERS)

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset, scheme = request.dataset, request.scheme
        if scheme["scheme"] != "pathological":
            raise FedPGPError(
                "protocol cross_class splits blocks of classes without overlap: "
                f"partition=pathological, not {scheme['scheme']}"
            )
        usual = (
            [{"name": "emoji", "groups": [g]} for g in GROUPS] if dataset.name == "emoji" else NINE
        )
        specs = as_specs(usual if self.datasets is None else self.datasets, "datasets")
        if dataset.name not in (spec["name"] for spec in specs):
            raise FedPGPError(
                f"protocol.datasets does not name {dataset.name}: the run's own data set is one "
                f"of the federation's ({', '.join(str(spec['name']) for spec in specs)})"
            )
        labels = [label_of(spec) for spec in specs]
        joint, members = join([request.load(spec) for spec in specs], labels)
        train, test = splits(joint)
        halves = [self._halves(joint, member) for member in members]
        base = tuple(c for half, _ in halves for c in half)
        novel = tuple(c for _, half in halves for c in half)
        client_splits = []
        for label, (mine, new), many in zip(
            labels, halves, self._clients(halves, request.clients), strict=True
        ):
            eval_sets = {
                "base": EvalSet(np.flatnonzero(np.isin(test.labels, mine)), mine),
                "novel": EvalSet(np.flatnonzero(np.isin(test.labels, new)), new),
            }
            unknown = UnknownImages("base", eval_sets["novel"].indices)
            for block in np.array_split(np.array(mine), many):
                classes = tuple(int(c) for c in block)
                rows = np.flatnonzero(np.isin(train.labels, classes))
                if request.shots is not None:
                    rows = rows[few_shot(train.labels[rows], request.shots, request.seed)]
                own = np.flatnonzero(np.isin(test.labels, classes))
                asked = classes if self.local_labels == "own" else mine
                wanted = {"local": EvalSet(own, asked), **eval_sets}
                client_splits.append(ClientSplit(rows, classes, wanted, label, unknown=unknown))
        for client, client_split in enumerate(client_splits):
            for what, rows in (
                ("training", client_split.train),
                *((f"{k} test", e.indices) for k, e in client_split.eval_sets.items()),
            ):
                if not len(rows):
                    raise FedPGPError(
                        f"client {client} ({client_split.domain}) has no {what} image: leave "
                        "that data set out"
                    )
        return FederatedSplit(joint, base, novel, client_splits)

    def _halves(self, joint: Dataset, member: Member) -> tuple[tuple[int, ...], tuple[int, ...]]:
        names = [joint.class_names[c] for c in member.classes]
        base, novel = base_novel(names, self.class_order)
        return tuple(member.classes[i] for i in base), tuple(member.classes[i] for i in novel)

    @staticmethod
    def _clients(halves: list[tuple[tuple[int, ...], tuple[int, ...]]], clients: int) -> list[int]:
        """Clients of each data set: at least one, and as its number of base classes."""
        sizes = np.array([len(base) for base, _ in halves])
        if clients < len(sizes):
            raise FedPGPError(
                f"clients={clients}: {len(sizes)} data sets need a client each; use "
                f"clients={len(sizes)}"
            )
        # One each, and the others by Sainte-Laguë's quotients, so that blocks come out alike.
        many = np.ones(len(sizes), dtype=np.int64)
        while many.sum() < clients:
            many[np.argmax(sizes / (2 * many + 1))] += 1
        if (crowded := many > np.maximum(1, sizes // 2)).any():
            most = int(np.maximum(1, sizes // 2).sum())
            raise FedPGPError(
                f"clients={clients}: a block needs 2 classes or more, and data set "
                f"{int(np.argmax(crowded)) + 1} has {sizes[crowded][0]} base classes for "
                f"{many[crowded][0]} clients; use clients={most} or fewer"
            )
        return many.tolist()
