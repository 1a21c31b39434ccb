"""``leave_one_domain_out``: the clients of one domain are left out, and its test images show what the others' prompts
make of it (``unseen``). The FedPGP paper's domain generalisation on DomainNet and Office-Caltech10.

Without ``held_out`` every domain is held out in turn, a run each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols.base import (
    ClientShare,
    Deal,
    Exam,
    Load,
    Protocol,
    all_classes,
    domains_of,
    hands,
    local_exam,
    rows_of,
)
from fedpgp.protocols.multidomain import by_domain


@dataclass(frozen=True)
class LeaveOneDomainOut(Protocol):
    """Options: ``held_out``, the domain that is left out; None makes a run of each."""

    name: ClassVar[str] = "leave_one_domain_out"
    parts: ClassVar[str | None] = "held_out"
    held_out: str | None = None

    def values(self, dataset: Dataset) -> Sequence[str]:
        return domains_of(dataset, self.name)

    def deal(self, dataset: Dataset, clients: int, seed: int, shots: int | None, scheme: Mapping, load: Load) -> Deal:
        classes, names = all_classes(dataset), domains_of(dataset, self.name)
        by_domain(self.name, scheme)
        if self.held_out is None:
            raise FedPGPError(f"protocol.held_out has no value; a run leaves out one of {', '.join(names)}")
        if self.held_out not in names:
            raise FedPGPError(unknown("protocol.held_out", self.held_out, names))
        left_out = Exam(rows_of(dataset.test, classes, self.held_out), classes)
        shares = [
            ClientShare(
                hand.train,
                classes,
                {
                    "local": local_exam(hand, classes, self.local_labels),
                    "unseen": left_out,
                    f"domains.{self.held_out}": left_out,
                },
                hand.domain,
            )
            for hand in hands(dataset, classes, clients, seed, shots, scheme)
            if hand.domain != self.held_out
        ]
        return Deal(dataset, classes, (), shares)
