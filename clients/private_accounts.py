"""What clients have spent with ``privacy=image``, as their private states have it
(:data:`fedpgp.training.private_training.ACCOUNT`).

Every state has the client's account of all its rounds so far, so the longest of a run's files
counts, whichever round a server goes back to.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clients.private_state import PrivateStore
from fedpgp.errors import FedPGPError
from fedpgp.training.private_training import ACCOUNT
from fedpgp.updates.accounting import Spent

_RUN, _CLIENT = re.compile(r"[0-9a-f]{8,64}"), re.compile(r"client_(\d+)")


def longest_account(states: Mapping[int, Mapping[str, Tensor]]) -> Tensor | None:
    """Return the account with the most noised sums among a client's states of a run (round ->
    state); None: it has spent nothing.

    Raises:
        FedPGPError: a state has an account that is none.
    """
    accounts = [state[ACCOUNT] for state in states.values() if ACCOUNT in state]
    if wrong := [list(a.shape) for a in accounts if a.dim() != 2 or a.shape[1] != 3]:
        raise FedPGPError(
            f"the account in a private state is {wrong[0]}, and must have three columns"
        )
    return max(accounts, key=lambda account: account[:, 2].sum()) if accounts else None


def spent_in(store: PrivateStore, client: int) -> Spent:
    """Return all noised sums of a client in a run.

    Raises:
        FedPGPError: one of its states cannot be read.
    """
    account = longest_account(store.states(client))
    return [] if account is None else account.tolist()


def spent_in_other_runs(state_dir: Path, run: str) -> Spent:
    """Return all noised sums on a node's images, of all runs but one that it took part in.

    Args:
        state_dir: of the node.
        run: the one that is left out.

    Raises:
        FedPGPError: a state cannot be read.
    """
    found: list[tuple[float, float, int]] = []
    for folder in sorted(state_dir.glob("*/client_*")):
        client, name = _CLIENT.fullmatch(folder.name), folder.parent.name
        if client and name != run and _RUN.fullmatch(name):
            try:
                found += spent_in(PrivateStore(folder.parent, name, 0), int(client[1]))
            except FedPGPError as error:
                raise FedPGPError(
                    f"{error}. It is of another run, which max-epsilon counts: restore the file, "
                    "or start the node without max-epsilon"
                ) from error
    return found
