"""``personal``: all classes are split over the clients, and a prompt is scored on its
client's own test images.

Protocol of PromptFL, FedOTP and their peers with classes split without overlap; with
``base=others`` DP-FPL's "neighbour" accuracy, with ``base=all`` FLiP's "global" (under the global
prompt) and "dual" benchmarks.
"""

from collections.abc import Mapping
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
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit


@register("personal")
@dataclass(frozen=True)
class Personal(EvalProtocol):
    """Options: ``base``, a second eval set of all test images (``all``), or on those of other
    classes than the client's own (``others``); None has none. With a partition by domain the images
    are of the client's own domain."""

    base: str | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("base", self.base, (None, "all", "others"))

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset, scheme = request.dataset, request.scheme
        classes = all_classes(dataset)
        client_splits = []
        for assigned in assign(request, classes):
            eval_sets = {"local": local_eval_set(assigned, classes, self.local_labels)}
            if self.base is not None:
                eval_sets["base"] = base_eval_set(
                    dataset, assigned, classes, self.base, len(client_splits), scheme
                )
            client_splits.append(ClientSplit(assigned.train, classes, eval_sets, assigned.domain))
        return FederatedSplit(dataset, classes, (), client_splits)


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
