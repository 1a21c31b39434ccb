"""Small federations whose clients' images are replaced by others, and rounds of them by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedpgp.federation import Federation
from fedpgp.protocols import Phase
from tests.helpers.small import small_config, small_federation

Rows = Sequence[int]


def federation(name: str, tasks: Sequence[Sequence[Rows]], *overrides: str) -> Federation:
    """Return a federation of a method.

    Args:
        name: of the method.
        tasks: training rows of each client in each task; task t begins with round t + 1.
        overrides: of the small configuration.
    """
    config = small_config("/nowhere", f"method={name}", f"clients={len(tasks[0])}", *overrides)
    made = small_federation(json.dumps(config))
    clients = []
    for client, split in enumerate(made.federated_split.clients):
        first, *later = (np.array(task[client], dtype=np.int64) for task in tasks)
        phases = tuple(Phase(2 + t, rows, split.classes) for t, rows in enumerate(later))
        clients.append(replace(split, train=first, phases=phases))
    made.federated_split = replace(made.federated_split, clients=clients)
    made.method.task.phases = len(tasks)
    return made


FIRST, SECOND = [[0, 1], [6, 7]], [[2, 3], [8]]
"""Training rows of two clients in two tasks."""


class Rounds:
    """A server and its clients, round by round.

    Attributes:
        shared: the newest shared tensors.
        states: of each client that trained.
        updates: of the last round.
    """

    def __init__(self, federation: Federation):
        self.federation = federation
        self.shared, self.states = federation.models.initial_shared(), {}
        self.server_state = federation.server.initial_state()
        self.updates: dict[int, dict] = {}

    def play(self, server_round: int, clients: Sequence[int]) -> None:
        """Train these clients, average them alike, and keep what comes of it."""
        fed = self.federation
        results = list(fed.train(self.shared, clients, server_round, self.states.get))
        assert not [result.error for result in results if result.error]
        self.states |= {result.client: result.state for result in results}
        self.updates = {result.client: result.update for result in results}
        averaged = {
            n: sum(update[n] for update in self.updates.values()) / len(results)
            for n in self.shared
        }
        self.shared, self.server_state = fed.server.update(
            averaged,
            server_round=server_round,
            num_rounds=9,
            global_params=self.shared,
            updates=self.updates,
            weights=dict.fromkeys(clients, 1.0),
            server_state=self.server_state,
        )


def after_two_tasks(method: str) -> tuple[Rounds, list[dict[str, np.ndarray]]]:
    """Train a method for a round in each of two tasks.

    Returns:
        the rounds, and the shared tensors at the start, after the first task, after the second.
    """
    rounds = Rounds(federation(method, [FIRST, SECOND], "lr=0.01"))
    kept = [rounds.shared]
    for server_round in (1, 2):
        rounds.play(server_round, [0, 1])
        kept.append(rounds.shared)
    return rounds, kept
