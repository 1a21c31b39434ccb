"""``unseen_clients``: some clients never train. They get the global prompt, and are tested
on their own test images.

With ``adapt_epochs`` such a client first trains its own copy for a few local epochs, and keeps it.
"""

from dataclasses import dataclass, replace

from fedpgp.errors import FedPGPError, check_number
from fedpgp.protocols.base import (
    SplitRequest,
    register,
)
from fedpgp.protocols.personal import Personal
from fedpgp.protocols.splits import FederatedSplit
from fedpgp.seeding import generator


@register("unseen_clients")
@dataclass(frozen=True)
class UnseenClients(Personal):
    """Options: ``share``, the fraction of clients that never train, drawn from the seed;
    ``adapt_epochs``, local epochs of such a client before it is tested (0: none); and
    those of ``personal``."""

    share: float = 0.25
    adapt_epochs: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_number("protocol.share", self.share, above=0, below=1)
        check_number("protocol.adapt_epochs", self.adapt_epochs, least=0, whole=True)

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        clients = request.clients
        if clients < 2:
            raise FedPGPError(
                f"clients={clients}: protocol unseen_clients needs 2 or more, one that trains "
                "and one not"
            )
        federated_split = super().split_clients(request)
        many = min(clients - 1, max(1, round(self.share * clients)))
        unseen = set(
            generator(request.seed, "unseen clients")
            .choice(clients, size=many, replace=False)
            .tolist()
        )
        client_splits = [
            replace(
                client_split, trains=False, eval_sets={"unseen": client_split.eval_sets["local"]}
            )
            if client in unseen
            else client_split
            for client, client_split in enumerate(federated_split.clients)
        ]
        return replace(federated_split, clients=client_splits, adapt_epochs=self.adapt_epochs)
