"""Going back a checkpoint: where a round's result is of no use to any client, the round
before it may be the cause."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fedpgp.errors import FedPGPError
from strategies.checkpoint import Corrupted, checkpoints, read_checkpoint


class NoUsableAnswer(Exception):
    """Clients answered, and not one of their answers can be used; ``failure`` is
    what a person is told."""

    def __init__(self, failure: FedPGPError):
        super().__init__(str(failure))
        self.failure = failure


_NUMBERS = re.compile(r"\b(nan|inf|infinite)\b|max_update_norm|max-step", re.IGNORECASE)


def about_numbers(reasons: Iterable[str]) -> bool:
    """Return whether some client was left out for its numbers: only then may the state before be
    spoiled. A full disk or a broken image says nothing of it."""
    return any(_NUMBERS.search(reason) for reason in reasons)


def checkpoint_before(
    folder: Path, server_round: int, warn: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict] | None:
    """Return the newest intact checkpoint of an earlier round, None where there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            tensors, info = read_checkpoint(path)
        except Corrupted as error:
            warn(f"{error}; trying the one before")
            continue
        if info["round"] < server_round:
            return tensors, info
    return None
