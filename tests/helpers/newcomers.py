"""The small federation with clients that never train."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpgp.federation import Federation
from fedpgp.onboarding import Trained
from fedpgp.onboarding.share import trained_of
from tests.helpers.small import small_config, small_federation

NEWCOMERS = (2, 5)
"""Of six clients, those that never train."""


def federation_with_newcomers(text: str) -> Federation:
    """Configuration (JSON text) -> the small federation in which two clients never train."""
    federation = small_federation(text)
    split = federation.federated_split
    clients = [
        replace(client, trains=False, eval_sets={"unseen": client.eval_sets["local"]})
        if number in NEWCOMERS
        else client
        for number, client in enumerate(split.clients)
    ]
    federation.federated_split = replace(split, clients=clients)
    return federation


def trained_federation(
    *overrides: str, description: str = "names", rounds: int = 2
) -> tuple[Federation, Trained]:
    """A federation that trained a few rounds, and what its clients share."""
    config = small_config(Path("nowhere"), "lr=0.3", *overrides)
    federation = federation_with_newcomers(json.dumps(config))
    shared, states = federation.models.initial_shared(), {}
    able = [c for c in range(federation.num_clients) if c not in NEWCOMERS]
    for server_round in range(1, rounds + 1):
        results = list(federation.train(shared, able, server_round, states.get))
        states |= {result.client: result.state for result in results}
        shared = {name: np.mean([r.update[name] for r in results], axis=0) for name in shared}
    return federation, trained_of(federation, shared, {}, states.get, description)
