"""What trained clients share for newcomers, where they agree (``method.share_terms``)."""

from collections.abc import Callable, Iterable

import numpy as np

from fedpgp.arrays import Arrays
from fedpgp.client_models import State
from fedpgp.federation import Federation
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.newcomers import Trained, state_bytes


def shared_terms(
    federation: Federation, load_state: Callable[[int], State | None]
) -> dict[int, State]:
    """Return client -> its private tensors, of clients that trained; without optimizer state.

    Args:
        federation: its split says who trains, its method which tensors are private.
        load_state: a client's newest private tensors; None for one that never took part.
    """
    found = {}
    for client, split in enumerate(federation.federated_split.clients):
        state = load_state(client) if split.trains else None
        if state is not None:
            found[client] = {name: state[name] for name in federation.models.personal_names}
    return found


def descriptions(
    federation: Federation, clients: Iterable[int], kind: str
) -> dict[int, np.ndarray]:
    """Return client -> its description (:func:`fedpgp.onboarding.descriptions.describe`), of those
    that have images at the end."""
    found = {}
    for client in clients:
        rows = federation.federated_split.clients[client].train_at(federation.training.rounds)
        if not len(rows):  # it has left (protocol.leaving)
            continue
        labels = np.unique(federation.dataset.train.labels[rows]).tolist()
        found[client] = describe(kind, federation, rows, labels)
    return found


def trained_of(
    federation: Federation,
    shared: Arrays,
    server_state: Arrays,
    load_state: Callable[[int], State | None] | None,
    description: str,
) -> Trained:
    """Return what a trained federation has for newcomers.

    Args:
        federation: that was trained.
        shared: the global tensors.
        server_state: what its server keeps.
        load_state: a client's private tensors; None where clients share nothing.
        description: how clients that share are described.
    """
    terms = shared_terms(federation, load_state) if load_state else {}
    described = descriptions(federation, terms, description)
    return Trained(shared, server_state, {c: terms[c] for c in described}, described)


def bytes_shared(trained: Trained) -> int:
    """Return the bytes of what clients shared."""
    described = sum(each.nbytes for each in trained.descriptions.values())
    return described + sum(map(state_bytes, trained.terms.values()))
