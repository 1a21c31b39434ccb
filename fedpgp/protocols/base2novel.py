"""``base2novel``: the first half of the classes (base) is dealt to the clients; the second half (novel) nobody sees.

A client's prompt is scored on its own test share (local), on the base classes and on the novel ones. With a partition
by domain, base and novel are taken from the client's own domain. The FedPGP paper's main table (there with classes
dealt without overlap).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpgp.data import Dataset
from fedpgp.data.subsets import CLASS_ORDERS, base_novel
from fedpgp.protocols.base import ClientShare, Deal, Exam, Load, Protocol, hands, local_exam, one_of, rows_of
from fedpgp.protocols.personal import base_exam, not_empty


@dataclass(frozen=True)
class Base2Novel(Protocol):
    """Options: ``class_order``, what the halves go by: ``label`` (CoOp) or ``alphabet`` (FLiP); ``base``, images of
    base accuracy: ``all``, or ``others`` (without the client's own classes)."""

    name: ClassVar[str] = "base2novel"
    class_order: str = "label"
    base: str = "all"

    def __post_init__(self):
        super().__post_init__()
        one_of("base", self.base, ("all", "others"))
        one_of("class_order", self.class_order, CLASS_ORDERS)

    def deal(self, dataset: Dataset, clients: int, seed: int, shots: int | None, scheme: Mapping, load: Load) -> Deal:
        base, novel = (tuple(ids) for ids in base_novel(dataset.class_names, order=self.class_order))
        shares = []
        for hand in hands(dataset, base, clients, seed, shots, scheme):
            rows = rows_of(dataset.test, novel, hand.domain)
            exams = {
                "local": local_exam(hand, base, self.local_labels),
                "base": base_exam(dataset, hand, base, self.base, len(shares), scheme),
                "novel": Exam(not_empty(rows, "novel", len(shares), self.base, scheme), novel),
            }
            shares.append(ClientShare(hand.train, base, exams, hand.domain))
        return Deal(dataset, base, novel, shares)
