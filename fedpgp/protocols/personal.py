"""``personal``: all classes are split over the clients, and a prompt is scored on its
client's own test images.

Protocol of PromptFL, FedOTP and their peers with classes split without overlap; with
``base=others`` DP-FPL's "neighbour" accuracy, with ``base=all`` FLiP's "global" (under the global
prompt) and "dual" benchmarks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    ClientIndices,
    EvalProtocol,
    SplitRequest,
    all_classes,
    assign,
    indices_of,
    local_eval_set,
    one_of,
    register,
)
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit, UnknownImages


@register("personal")
@dataclass(frozen=True)
class Personal(EvalProtocol):
    """Options: ``base``, a second eval set of all test images (``all``), or on those of other
    classes than the client's own (``others``); None has none. With a partition by domain the images
    are of the client's own domain. With ``local_labels=own``, those of classes that the client does
    not have are also told from its own."""

    base: str | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("base", self.base, (None, "all", "others"))

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        classes = all_classes(request.dataset)
        assigned = assign(request, classes)
        client_splits = [
            self.client_split(request, assigned, client, classes) for client in range(len(assigned))
        ]
        return FederatedSplit(request.dataset, classes, (), client_splits)

    def client_split(
        self,
        request: SplitRequest,
        assigned: Sequence[ClientIndices],
        client: int,
        classes: tuple[int, ...],
    ) -> ClientSplit:
        """Return what a client trains on and is tested on.

        Args:
            request: what is split.
            assigned: the images of all clients.
            client: its number.
            classes: labels that it chooses among.
        """
        mine, scheme = assigned[client], request.scheme
        eval_sets = {"local": local_eval_set(mine, classes, self.local_labels)}
        unknown = None
        if self.base is not None:
            base = base_eval_set(request.dataset, mine, classes, self.base, client, scheme)
            eval_sets["base"] = base
            labels = request.dataset.test.labels[base.indices]
            others = base.indices[~np.isin(labels, mine.labels)]
            if self.local_labels == "own" and len(others):
                unknown = UnknownImages("local", others)
        return ClientSplit(mine.train, classes, eval_sets, mine.domain, unknown=unknown)


def base_eval_set(
    dataset: Dataset,
    assigned: ClientIndices,
    classes: tuple[int, ...],
    base: str,
    client: int,
    scheme: Mapping,
) -> EvalSet:
    """All test images of the trained classes (of the client's own domain, if it has one), or those
    of other classes than its own.

    Raises:
        FedPGPError: there is none.
    """
    rows = indices_of(dataset.test, classes, assigned.domain)
    if base == "others":
        rows = rows[~np.isin(dataset.test.labels[rows], assigned.labels)]
    return EvalSet(not_empty(rows, "base", client, base, scheme), classes)


def not_empty(rows: np.ndarray, what: str, client: int, base: str, scheme: Mapping) -> np.ndarray:
    """The rows, when there are some."""
    if not len(rows):
        raise FedPGPError(
            f"client {client} has no test image for {what} accuracy with protocol.base={base} "
            f"and partition={scheme['scheme']}: 'others' needs classes split without overlap "
            "(partition=pathological); else use protocol.base=all, or data with test images of "
            "both halves of the classes in every domain"
        )
    return rows
