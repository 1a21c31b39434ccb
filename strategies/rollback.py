"""Rollback to an earlier checkpoint: where no client can use a round's result, the round before it
may be the cause."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from fedpgp.errors import FedPGPError
from strategies.checkpoint import Corrupted, checkpoints, read_checkpoint


class NoUsableReply(Exception):
    """Clients answered, and not one of their replies can be used; ``failure`` is
    what a person is told."""

    def __init__(self, failure: FedPGPError):
        super().__init__(str(failure))
        self.failure = failure


_NUMBERS = re.compile(r"\b(nan|inf|infinite)\b|max_update_norm|max-step", re.IGNORECASE)


def about_numbers(reasons: Iterable[str]) -> bool:
    """Return whether some client was left out for its numbers: only then may the state before be
    spoiled. A full disk or a broken image says nothing of it."""
    return any(_NUMBERS.search(reason) for reason in reasons)


def may_be_spoiled(
    failed: Mapping[int, str], silent: Collection[int], exceptions: Collection[str]
) -> bool:
    """Return whether the state before a round may be why no client gave a usable reply.

    Where more than half did not answer at all, the network is the likelier reason. At just half it
    is not: all that answered say so, and the run would end otherwise.

    Args:
        failed: client -> why its reply cannot be used.
        silent: those of them that did not answer.
        exceptions: reasons that are exceptions of code, which have nothing to do with the state.
    """
    of_code = set(exceptions).issuperset(failed.values())
    return 2 * len(silent) <= len(failed) and not of_code and about_numbers(failed.values())


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


class Rollback:
    """Finds the checkpoint that a run is rolled back to, once from each round.

    Args:
        folder: of the checkpoints.
        warn: told why, and of damaged checkpoints.
        allowed: False: never, since the noise of a round is drawn once.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], allowed: bool = True):
        self._folder, self._warn, self._allowed = folder, warn, allowed
        self._done: set[int] = set()  # rounds that were rolled back

    def checkpoint(
        self, server_round: int, state_round: int, lost: NoUsableReply
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Return the checkpoint before the state of which no client made a usable reply.

        Args:
            server_round: the round that is lost.
            state_round: the round after which the state is: the one before, or this one where its
                evaluation is lost.
            lost: what happened.

        Raises:
            NoUsableReply: the run was rolled back from this round already, there is no such
                checkpoint, or it is not allowed.
        """
        if not self._allowed:
            raise lost
        earlier = checkpoint_before(self._folder, state_round, self._warn)
        if earlier is None or server_round in self._done:
            raise lost
        self._done.add(server_round)
        self._warn(
            f"{lost}. The tensors after round {state_round} may be spoiled: rolling back to "
            f"those after round {earlier[1]['round']}"
        )
        return earlier
