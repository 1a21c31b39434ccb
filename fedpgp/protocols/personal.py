"""``personal``: all classes are dealt, and a client's prompt is scored on its own test share.

Protocol of PromptFL, FedOTP and their peers with classes dealt without overlap; with ``base=others`` DP-FPL's
"neighbour" accuracy, with ``base=all`` FLiP's "global" (under the global prompt) and "dual" benchmarks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    ClientShare,
    Deal,
    Exam,
    Hand,
    Load,
    Protocol,
    all_classes,
    hands,
    local_exam,
    one_of,
    rows_of,
)


@dataclass(frozen=True)
class Personal(Protocol):
    """Options: ``base``, a second exam on all test images (``all``), or on those of other classes than the client's
    own (``others``); None has none. With a partition by domain the images are of the client's own domain."""

    name: ClassVar[str] = "personal"
    base: str | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("base", self.base, (None, "all", "others"))

    def deal(self, dataset: Dataset, clients: int, seed: int, shots: int | None, scheme: Mapping, load: Load) -> Deal:
        classes = all_classes(dataset)
        shares = []
        for hand in hands(dataset, classes, clients, seed, shots, scheme):
            exams = {"local": local_exam(hand, classes, self.local_labels)}
            if self.base is not None:
                exams["base"] = base_exam(dataset, hand, classes, self.base, len(shares), scheme)
            shares.append(ClientShare(hand.train, classes, exams, hand.domain))
        return Deal(dataset, classes, (), shares)


def base_exam(dataset: Dataset, hand: Hand, classes: tuple[int, ...], base: str, client: int, scheme: Mapping) -> Exam:
    """All test images of the trained classes (of the client's own domain, if it has one), or those of other classes
    than its own.

    Raises:
        FedPGPError: there is none.
    """
    rows = rows_of(dataset.test, classes, hand.domain)
    if base == "others":
        rows = rows[~np.isin(dataset.test.labels[rows], hand.labels)]
    return Exam(not_empty(rows, "base", client, base, scheme), classes)


def not_empty(rows: np.ndarray, what: str, client: int, base: str, scheme: Mapping) -> np.ndarray:
    """The rows, when there are some."""
    if not len(rows):
        raise FedPGPError(
            f"client {client} has no test image for {what} accuracy with protocol.base={base} and "
            f"partition={scheme['scheme']}: 'others' needs classes dealt without overlap (partition=pathological); "
            "else use protocol.base=all, or data with test images of both halves of the classes in every domain"
        )
    return rows
