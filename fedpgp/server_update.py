"""The server's part of a method: its state, what one client is sent, the next global tensors."""

from collections.abc import Mapping

import numpy as np
import torch

from fedpgp.arrays import Arrays, to_arrays, to_tensors
from fedpgp.methods import Method, RoundContext
from fedpgp.protocols import FederatedSplit
from fedpgp.training.settings import TrainingSettings

WEIGHTINGS = ("images", "equal")
"""Values of ``method.weighting``."""


class ServerUpdate:
    """What the server does beyond the averaging of a strategy.

    Args:
        method: does it.
        federated_split: the clients.
        training: their learning rate in a round.
        seed: of the run.
        weighting: one of :data:`WEIGHTINGS`; None: as the method does.
    """

    def __init__(
        self,
        method: Method,
        federated_split: FederatedSplit,
        training: TrainingSettings,
        seed: int,
        weighting: str | None,
    ):
        self.method, self.federated_split, self.training = method, federated_split, training
        self.seed, self.weighting = seed, weighting

    @property
    def equal_weights(self) -> bool:
        """Whether the server averages clients alike, not by their number of images."""
        return self.method.equal_weights if self.weighting is None else self.weighting == "equal"

    def initial_state(self) -> dict[str, np.ndarray]:
        """Return the server state before round 1."""
        return to_arrays(
            self.method.init_server_state(len(self.federated_split.clients)), self.method.task.dtype
        )

    def download_for(self, client: int, server_state: Arrays) -> dict[str, np.ndarray]:
        """Return what the server sends to this client alone."""
        return to_arrays(
            self.method.download_for(client, to_tensors(server_state)), self.method.task.dtype
        )

    def update(
        self,
        averaged: Arrays,
        *,
        server_round: int,
        num_rounds: int,
        global_params: Arrays,
        updates: Mapping[int, Arrays],
        weights: Mapping[int, float],
        server_state: Arrays,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the next shared tensors and the next server state.

        Args:
            averaged: what the strategy made of the updates.
            server_round, num_rounds: this round, and how many the run has.
            global_params: the shared tensors as the server sent them.
            updates, weights: of each client whose update counts.
            server_state: before this round.
        """
        clients = sorted(updates)
        weight = torch.tensor([weights[client] for client in clients], dtype=torch.float64)
        stacked = {
            n: torch.stack([torch.from_numpy(np.array(updates[c][n])) for c in clients])
            for n in global_params
        }
        shared, server_state = self.method.update_server(
            to_tensors(averaged),
            RoundContext(
                server_round=server_round,
                num_rounds=num_rounds,
                clients=clients,
                num_clients=len(self.federated_split.clients),
                weights=(weight / weight.sum()).to(self.method.task.dtype),
                global_params=to_tensors(global_params),
                updates=stacked,
                server_state=to_tensors(server_state),
                lr=self.training.learning_rate(server_round),
                seed=self.seed,
            ),
        )
        dtype = self.method.task.dtype
        return to_arrays(shared, dtype), to_arrays(server_state, dtype)
