"""``unseen_clients``: some clients never train. They get the global prompt, and are tested
on their own test images.

With ``adapt_epochs`` such a client first trains its own copy for a few local epochs, and keeps it.
With ``onboard`` such clients are newcomers once the training is over (:mod:`fedpgp.onboarding`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedpgp.errors import FedPGPError, check_number
from fedpgp.protocols.base import (
    ClientIndices,
    SplitRequest,
    all_classes,
    assign,
    one_of,
    register,
)
from fedpgp.protocols.newcomer_shifts import SHIFTS, by_class, by_domain, with_other_labels
from fedpgp.protocols.onboarding_options import OnboardingOptions
from fedpgp.protocols.personal import Personal
from fedpgp.protocols.splits import ClientSplit, FederatedSplit
from fedpgp.seeding import generator


@register("unseen_clients")
@dataclass(frozen=True)
class UnseenClients(OnboardingOptions, Personal):
    """Options: ``share``, the fraction of clients that never train, drawn from the seed;
    ``adapt_epochs``, local epochs of such a client before it is tested (0: none); those of
    ``personal``, and of onboarding after the training.

    ``shift``, what is different about their images: ``none``; ``label``: they are divided among
    them by Dirichlet(``unseen_beta``); ``domain``: they are of ``unseen_domain``, which no other
    client has; ``classes``: they are of a fraction ``unseen_classes`` of the classes, drawn from
    the seed, which no other client has.
    """

    share: float = 0.25
    adapt_epochs: int = 0
    shift: str = "none"
    unseen_beta: float = 1.0
    unseen_domain: str | None = None
    unseen_classes: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        check_number("protocol.share", self.share, above=0, below=1)
        check_number("protocol.adapt_epochs", self.adapt_epochs, least=0, whole=True)
        one_of("shift", self.shift, SHIFTS)
        check_number("protocol.unseen_beta", self.unseen_beta, above=0)
        check_number("protocol.unseen_classes", self.unseen_classes, above=0, below=1)
        self.check_onboarding()

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        clients = request.clients
        if clients < 2:
            raise FedPGPError(
                f"clients={clients}: protocol unseen_clients needs 2 or more, one that trains "
                "and one not"
            )
        many = min(clients - 1, max(1, round(self.share * clients)))
        drawn = generator(request.seed, "unseen clients").choice(clients, many, replace=False)
        unseen = sorted(drawn.tolist())
        trained = new = all_classes(request.dataset)
        if self.shift == "domain":
            assigned = by_domain(request, unseen, self.unseen_domain, self.name)
        elif self.shift == "classes":
            assigned, trained, new = by_class(request, unseen, self.unseen_classes)
        else:
            assigned = assign(request, trained)
        if self.shift == "label":
            assigned = with_other_labels(request, assigned, unseen, self.unseen_beta)
        client_splits = [
            self._newcomer(request, assigned, client, new)
            if client in unseen
            else self.client_split(request, assigned, client, trained)
            for client in range(clients)
        ]
        return FederatedSplit(
            request.dataset, trained, (), client_splits, adapt_epochs=self.adapt_epochs
        )

    def _newcomer(
        self,
        request: SplitRequest,
        assigned: Sequence[ClientIndices],
        client: int,
        classes: tuple[int, ...],
    ) -> ClientSplit:
        split = self.client_split(request, assigned, client, classes)
        return replace(split, trains=False, eval_sets={"unseen": split.eval_sets["local"]})
