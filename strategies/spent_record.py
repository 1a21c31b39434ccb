"""How many noised sums a run has released, beside its checkpoints: a checkpoint that is removed
takes its round back, and not what was drawn for it."""

import json
from collections.abc import Mapping
from pathlib import Path

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.updates.base import State

RECORD = "spent.json"
"""In the folder of the checkpoints: update step -> noised sums."""
SPENT = "spent"
"""How an update step's state calls its number of noised sums."""


def record_spent(folder: Path, states: Mapping[str, State]) -> None:
    """Write the record, where a step of the run counts noised sums.

    Args:
        folder: of the checkpoints.
        states: of the update steps, as the next checkpoint will have them.

    Raises:
        FedPGPError: it cannot be written.
    """
    counts = {step: state[SPENT] for step, state in states.items() if SPENT in state}
    if counts:
        write_atomically(folder / RECORD, json.dumps(counts).encode())


def count_spent(folder: Path, info: dict) -> int:
    """Put what was spent in rounds that no checkpoint has any more into a checkpoint's account.

    Args:
        folder: of the checkpoints.
        info: of the one to resume from; changed in place.

    Returns:
        the noised sums that it lacked.

    Raises:
        FedPGPError: the record cannot be read.
    """
    path = folder / RECORD
    try:
        counts = {str(step): int(count) for step, count in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:  # no noise, or a run of an earlier version
        return 0
    except (OSError, *MALFORMED) as error:
        raise FedPGPError(
            f"{path} cannot be read ({error}): without it noise may be drawn twice for a round and "
            "counted once; restore it, or start anew with another run_dir"
        ) from error
    lacking = 0
    for step, state in info.get("updates", {}).items():
        lacking += max(0, counts.get(step, 0) - state.get(SPENT, 0))
        if counts.get(step, 0) > state.get(SPENT, 0):
            state[SPENT] = counts[step]
    return lacking
