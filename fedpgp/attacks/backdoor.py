"""Backdoor: attackers teach the model that an image with a patch is of their target class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedpgp.attacks.base import Attack, AttackContext, Changes, register
from fedpgp.attacks.success import SUCCESS
from fedpgp.data.base import Subset
from fedpgp.data.joint import appended
from fedpgp.data.poisoned import PatchedSplit
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.protocols import EvalSet, FederatedSplit
from fedpgp.seeding import generator


@register("backdoor")
@dataclass(frozen=True)
class Backdoor(Attack):
    """Put a patch on some training images and call them the target class (Gu et al., IEEE Access
    2019, "BadNets"; in federated learning with a scaled change: Bagdasaryan et al., AISTATS 2020).

    Every client is tested, beside its own images, on those of other classes with the patch.

    Attributes:
        scale: times the change that is sent; 1 as it was trained.
        target: name of the target class; None: the first that is trained.
        poisoned: fraction of an attacker's training images that get the patch.
        patch: side of the patch, in sides of the image's central square.
    """

    measured = True
    scale: float
    target: str | None
    poisoned: float
    patch: float

    def __post_init__(self):
        super().__post_init__()
        check_number("attack.poisoned", self.poisoned, above=0, most=1)
        check_number("attack.patch", self.patch, above=0, most=1)

    def poison(
        self, federated_split: FederatedSplit, attackers: Sequence[int], seed: int
    ) -> FederatedSplit:
        dataset, client_splits = federated_split.dataset, list(federated_split.clients)
        target = self._target(federated_split)
        chosen: list[int] = []
        for client in attackers:
            own = client_splits[client]
            if any(target not in part.classes for part in (own, *own.phases)):
                name, when = dataset.class_names[target], " in every round" if own.phases else ""
                raise FedPGPError(
                    f"attack.target={name}: client {client} does not train this class{when}"
                )
            mine = own.train_indices
            number = max(1, round(self.poisoned * len(mine)))
            drawn = generator(seed, "attack images", client).permutation(len(mine))[:number]
            moved = np.arange(len(dataset.train))
            moved[mine[drawn]] = len(dataset.train) + len(chosen) + np.arange(number)
            chosen += mine[drawn].tolist()
            phases = tuple(replace(phase, train=moved[phase.train]) for phase in own.phases)
            client_splits[client] = replace(own, train=moved[own.train], phases=phases)
        train = appended(dataset.train, self._patched(dataset.train, chosen, target))
        labels = dataset.test.labels
        wanted = [_other_classes(own.local_eval_set, labels, target) for own in client_splits]
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *wanted]))
        test = appended(dataset.test, self._patched(dataset.test, rows, target))
        for client, own in enumerate(client_splits):
            if len(wanted[client]) and target in own.local_eval_set.classes:
                indices = len(labels) + np.searchsorted(rows, wanted[client])
                local = own.local_eval_set
                when = {"since": local.since, "until": local.until}
                eval_set = EvalSet(indices, local.classes, **when)
                eval_sets = {**own.eval_sets, SUCCESS: eval_set}
                client_splits[client] = replace(own, eval_sets=eval_sets)
        dataset = replace(dataset, train=train, test=test)
        return replace(federated_split, dataset=dataset, clients=client_splits)

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        return {name: self.scale * tensor for name, tensor in change.items()}

    def _target(self, federated_split: FederatedSplit) -> int:
        names, trained = federated_split.dataset.class_names, federated_split.base_classes
        if self.target is None:
            return trained[0]
        there = {names[label]: label for label in trained}
        if self.target not in list(there):
            raise FedPGPError(unknown("class of attack.target", self.target, there))
        return there[self.target]

    def _patched(self, split, rows: Sequence[int], target: int) -> PatchedSplit:
        return PatchedSplit(Subset(split, rows), target, self.patch)


def _other_classes(eval_set: EvalSet | None, labels: np.ndarray, target: int) -> np.ndarray:
    """Indices of an eval set's test images that are not of the target class."""
    if eval_set is None or eval_set.split != "test":
        return np.empty(0, dtype=np.int64)
    return eval_set.indices[labels[eval_set.indices] != target]
