"""``multidomain``: every client has images of one domain, and accuracy is told domain by domain.

The FedPGP paper's DomainNet and Office-Caltech10 tables (a domain's figure is the mean of its clients'), and FLiP's
"multidomain" benchmark (``domains=all``: every model on every domain's whole test split).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    ClientShare,
    Deal,
    Exam,
    Load,
    Protocol,
    all_classes,
    deals_by_domain,
    domains_of,
    hands,
    local_exam,
    one_of,
    rows_of,
)


@dataclass(frozen=True)
class MultiDomain(Protocol):
    """Options: ``domains``, what a domain's accuracy is: ``own``, the mean local accuracy of its clients; or ``all``,
    the mean over all clients' models of their accuracy on its whole test split."""

    name: ClassVar[str] = "multidomain"
    domains: str = "own"

    def __post_init__(self):
        super().__post_init__()
        one_of("domains", self.domains, ("own", "all"))

    def deal(self, dataset: Dataset, clients: int, seed: int, shots: int | None, scheme: Mapping, load: Load) -> Deal:
        classes, names = all_classes(dataset), domains_of(dataset, self.name)
        by_domain(self.name, scheme)
        exams = {}
        if self.domains == "all":
            exams = {f"domains.{name}": Exam(rows_of(dataset.test, classes, name), classes) for name in names}
        shares = [
            ClientShare(
                hand.train, classes, {"local": local_exam(hand, classes, self.local_labels), **exams}, hand.domain
            )
            for hand in hands(dataset, classes, clients, seed, shots, scheme)
        ]
        return Deal(dataset, classes, (), shares)


def by_domain(protocol: str, scheme: Mapping) -> None:
    """Refuses a partition that mixes domains on a client."""
    if not deals_by_domain(scheme):
        raise FedPGPError(
            f"protocol {protocol} needs clients of one domain each; partition={scheme['scheme']} mixes them: choose "
            "domain, domain_dirichlet or natural"
        )
