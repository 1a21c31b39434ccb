"""The server's part of a method: its state, what one client is sent, the next global tensors."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays, to_arrays, to_tensors
from fedpgp.errors import MethodError
from fedpgp.methods import Method, RoundContext
from fedpgp.protocols import FederatedSplit
from fedpgp.training.settings import TrainingSettings


class ServerUpdate:
    """What the server does beyond the averaging of a strategy.

    Args:
        method: does it.
        federated_split: the clients.
        training: their learning rate in a round.
        seed: of the run.
        weighting: ``images`` or ``equal``; None: as the method does.
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

    def client_rows(self) -> list[str]:
        """Return the names of the server state's tensors that have a row for each client: with one
        client more they have one row more."""
        clients = len(self.federated_split.clients)
        now, more = (self.method.init_server_state(n) for n in (clients, clients + 1))
        shapes = {name: tuple(tensor.shape) for name, tensor in now.items()}
        return [n for n, t in more.items() if (clients, *t.shape[1:]) == shapes[n] != t.shape]

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
        weights: Mapping[int, float],
        server_state: Arrays,
        updates: Mapping[int, Arrays] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the next shared tensors and the next server state.

        Args:
            averaged: what the strategy made of the updates.
            server_round, num_rounds: this round, and how many the run has.
            global_params: the shared tensors as the server sent them.
            weights: of each client whose update counts.
            server_state: before this round.
            updates: of the same clients; only for a method that
                :attr:`~fedpgp.methods.Method.needs_each_update`.
        """
        clients = sorted(weights)
        weight = torch.tensor([weights[client] for client in clients], dtype=torch.float64)
        shared, server_state = self.method.update_server(
            to_tensors(averaged),
            RoundContext(
                server_round=server_round,
                num_rounds=num_rounds,
                clients=clients,
                num_clients=len(self.federated_split.clients),
                weights=(weight / weight.sum()).to(self.method.task.dtype),
                global_params=to_tensors(global_params),
                updates=self._stacked(updates, clients, global_params),
                server_state=to_tensors(server_state),
                lr=self.training.learning_rate(server_round),
                seed=self.seed,
            ),
        )
        if set(shared) != set(global_params):
            raise MethodError(
                f"method {self.method.name}: update_server returns the shared tensors "
                f"{sorted(shared)} and must return {sorted(global_params)}, and the server state "
                "as the second of the two"
            )
        dtype = self.method.task.dtype
        return to_arrays(shared, dtype), to_arrays(server_state, dtype)

    def _stacked(
        self, updates: Mapping[int, Arrays] | None, clients: list[int], names: Iterable[str]
    ) -> Mapping[str, Tensor]:
        """The clients' tensors on a leading axis, where the method reads them."""
        if not self.method.needs_each_update:
            return _NotKept(self.method)
        return {
            n: torch.stack([torch.from_numpy(np.array(updates[c][n])) for c in clients])
            for n in names
        }


class _NotKept(Mapping):
    """The updates of a method that does not say that it needs each of them."""

    def __init__(self, method: Method):
        self._method = method

    def __getitem__(self, name: str) -> Tensor:
        raise self._error()

    def __iter__(self) -> Iterator[str]:
        raise self._error()

    def __len__(self) -> int:
        raise self._error()

    def _error(self) -> MethodError:
        code = type(self._method).update_server.__code__
        return MethodError(
            f"method {self._method.name}: its update_server reads context.updates, which a server "
            "has only for a class with needs_each_update = True "
            f"({code.co_filename}:{code.co_firstlineno})"
        )
