"""``dirichlet``: label shift. Every client has all classes in proportions of its own, and is
tested in the same ones.

The FedPGP paper's CIFAR tables: Dirichlet(0.3) over labels, 100 clients, a tenth of them a round;
CIFAR-100's public split is Pachinko.
"""

from dataclasses import dataclass

from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    SplitRequest,
    register,
)
from fedpgp.protocols.personal import Personal
from fedpgp.protocols.splits import FederatedSplit

SCHEMES = ("dirichlet", "pachinko", "domain_dirichlet")


@register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Personal):
    """Options: as ``personal``."""

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        scheme = request.scheme["scheme"]
        if scheme not in SCHEMES:
            raise FedPGPError(
                f"protocol dirichlet is about label shift; partition={scheme} has none: "
                f"choose one of {', '.join(SCHEMES)}, or protocol=personal"
            )
        return super().split_clients(request)
