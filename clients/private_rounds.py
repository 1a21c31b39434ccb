"""A round of training with ``privacy=image``: what a client has released stays what it is.

The noise of a round is drawn once. What came of it is in the client's private state of the round
before anybody is told: asked for the same round from the same tensors again (its answer was lost,
the server was killed), a client answers with what it has, and nothing more is spent. From other
tensors it trains anew, and both count: the account of a client is the longest in its files,
whichever round the server goes back to.
"""

import hashlib
from collections.abc import Iterator, Mapping
from math import inf

import numpy as np
import torch
from torch import Tensor

from clients.private_accounts import longest_account, spent_in_other_runs
from clients.request import ClientOnly, ClientRequest, Shared
from fedpgp.training.private_training import ACCOUNT, OwnersBound
from fedpgp.training.trainer import TrainResult

INPUTS, FIGURES, SENT = "privacy/inputs", "privacy/figures/", "privacy/sent/"
"""Of a round's private state: digest of what it was trained from, and what was released."""


def train(
    request: ClientRequest,
    federation,
    shared: Shared,
    clients: list[int],
    client_only: ClientOnly,
) -> Iterator[TrainResult]:
    """Train clients for the round of a request (:meth:`fedpgp.federation.Federation.train`)."""
    server_round = request.job.server_round
    if federation.private is None:
        yield from federation.train(shared, clients, server_round, request.load_state, client_only)
        return
    if (node := request.node_config) is not None:
        bounded = node.max_epsilon < inf
        earlier = spent_in_other_runs(node.state_dir, request.job.run) if bounded else ()
        federation.private.owner = OwnersBound(node.max_epsilon, earlier)
    files = {client: request.store.states(client) for client in clients}
    states = {client: _state(request, federation, client, files[client]) for client in clients}
    inputs = {c: _digest(shared, client_only.get(c, {}), states[c]) for c in clients}
    fresh = []
    for client in clients:
        known = files[client].get(server_round, {})
        if INPUTS in known and torch.equal(known[INPUTS], inputs[client]):
            yield _released(client, known)
        else:
            fresh.append(client)
    for result in federation.train(shared, fresh, server_round, states.get, client_only):
        if result.error is None:
            figures = {
                name: torch.tensor(value, dtype=torch.float64)
                for name, value in {**result.metrics, "num_examples": result.num_examples}.items()
            }
            result.state |= {
                INPUTS: inputs[result.client],
                **{SENT + name: torch.from_numpy(a) for name, a in result.update.items()},
                **{FIGURES + name: figure for name, figure in figures.items()},
            }
        yield result


def keep_account(request: ClientRequest, result: TrainResult) -> None:
    """Keep the account of a client whose round came to nothing: its noise was drawn."""
    if ACCOUNT in result.state:
        kept, about = {ACCOUNT: result.state[ACCOUNT]}, request.committed[result.client]
        request.store.save(result.client, request.job.server_round, kept, about)


def _state(
    request: ClientRequest, federation, client: int, files: Mapping[int, dict[str, Tensor]]
) -> dict[str, Tensor] | None:
    """The private tensors that count, with the longest account of all that there are."""
    state, account = request.load_state(client), longest_account(files)
    if account is None:
        return state
    if state is None:
        state = federation.models.initial_state(client)
    return {**state, ACCOUNT: account}


def _digest(shared: Shared, own: Shared, state: Mapping[str, Tensor] | None) -> Tensor:
    """SHA-256 of what a client trains from, (32,)."""
    found = hashlib.sha256()
    learned = {
        name: tensor.numpy() for name, tensor in (state or {}).items() if "privacy/" not in name
    }
    for kind, arrays in (("shared", shared), ("own", own), ("state", learned)):
        for name in sorted(arrays):
            found.update(f"{kind}/{name}".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def _released(client: int, state: Mapping[str, Tensor]) -> TrainResult:
    """What a client released of a round before."""
    figures = {
        name.removeprefix(FIGURES): tensor.item()
        for name, tensor in state.items()
        if name.startswith(FIGURES)
    }
    images = int(figures.pop("num_examples"))
    update = {
        name.removeprefix(SENT): tensor.numpy()
        for name, tensor in state.items()
        if name.startswith(SENT)
    }
    return TrainResult(client, update, dict(state), images, figures)
