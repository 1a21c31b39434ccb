"""Label flip: attackers train on their images under other labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedpgp.attacks.base import Attack, AttackContext, Changes, register
from fedpgp.data.poisoned import relabelled
from fedpgp.protocols import FederatedSplit


@register("label_flip")
@dataclass(frozen=True)
class LabelFlip(Attack):
    """Call class c of C class C - 1 - c (Fang et al., USENIX Security 2020, section 6.1), and send
    ``scale`` times the change."""

    scale: float

    def poison(
        self, federated_split: FederatedSplit, attackers: Sequence[int], seed: int
    ) -> FederatedSplit:
        train = federated_split.dataset.train
        labels = train.labels.copy()
        for client in attackers:
            own = federated_split.clients[client]
            for part in (own, *own.phases):
                flipped = dict(zip(part.classes, reversed(part.classes), strict=True))
                labels[part.train] = [flipped[int(label)] for label in train.labels[part.train]]
        dataset = replace(federated_split.dataset, train=relabelled(train, labels))
        return replace(federated_split, dataset=dataset)

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        return {name: self.scale * tensor for name, tensor in change.items()}
