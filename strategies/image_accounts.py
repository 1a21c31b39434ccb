"""What the clients of a simulation with ``privacy=image`` have spent, by their own accounts: every
round in which a client trained counts, also where its reply was lost or left out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clients.messages import Job
from clients.private_accounts import spent_in
from clients.private_state import PrivateStore
from fedpgp.training.private_training import PrivateTraining, account_figures
from fedpgp.updates.base import State
from fedpgp.updates.image_privacy import ImagePrivacy


def spent_by_clients(
    private: PrivateTraining, folder: Path, job: Job
) -> dict[int, dict[str, float]]:
    """Return client -> :func:`fedpgp.training.private_training.account_figures`, of those that have
    trained.

    Args:
        private: how the run's clients train.
        folder: of the private states.
        job: of the run.

    Raises:
        FedPGPError: a state cannot be read.
    """
    store, found = PrivateStore(folder, job.run, job.attempt), {}
    for client in range(len(private.federated_split.clients)):
        if spent := spent_in(store, client):
            about = private.delta(client), private.settings.accountant
            found[client] = account_figures(spent, *about)
    return found


def state_of(spent: Mapping[int, Mapping[str, float]], clients: int) -> State:
    """Return the state of :class:`fedpgp.updates.image_privacy.ImagePrivacy` that says the same.

    Args:
        spent: what :func:`spent_by_clients` gave.
        clients: of the federation.
    """
    accounts = np.full((clients, len(ImagePrivacy.COLUMNS)), np.nan)
    for client, said in spent.items():
        accounts[client] = [said.get(column, np.nan) for column in ImagePrivacy.COLUMNS]
    return {"accounts": accounts}
