"""``multidomain``: every client has images of one domain, and accuracy is told domain by domain.

The FedPGP paper's DomainNet and Office-Caltech10 tables (a domain's figure is the mean of
its clients'), and FLiP's "multidomain" benchmark (``domains=all``: every model on every
domain's whole test split).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    EvalProtocol,
    SplitRequest,
    all_classes,
    assign,
    domains_of,
    indices_of,
    local_eval_set,
    one_of,
    register,
    splits_by_domain,
)
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit


@register("multidomain")
@dataclass(frozen=True)
class MultiDomain(EvalProtocol):
    """Options: ``domains``, what a domain's accuracy is: ``own``, the mean local
    accuracy of its clients; or ``all``, the mean over all clients' models of their
    accuracy on its whole test split."""

    domains: str = "own"

    def __post_init__(self):
        super().__post_init__()
        one_of("domains", self.domains, ("own", "all"))

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset = request.dataset
        classes, names = all_classes(dataset), domains_of(dataset, self.name)
        by_domain(self.name, request.scheme)
        eval_sets = {}
        if self.domains == "all":
            eval_sets = {
                f"domains.{name}": EvalSet(indices_of(dataset.test, classes, name), classes)
                for name in names
            }
        client_splits = [
            ClientSplit(
                assigned.train,
                classes,
                {"local": local_eval_set(assigned, classes, self.local_labels), **eval_sets},
                assigned.domain,
            )
            for assigned in assign(request, classes)
        ]
        return FederatedSplit(dataset, classes, (), client_splits)


def by_domain(protocol: str, scheme: Mapping) -> None:
    """Refuses a partition that mixes domains on a client."""
    if not splits_by_domain(scheme):
        raise FedPGPError(
            f"protocol {protocol} needs clients of one domain each; partition={scheme['scheme']} "
            "mixes them: choose domain, domain_dirichlet or natural"
        )
