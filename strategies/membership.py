"""Clients that are admitted to a running federation, or have left it: what the server keeps of each
client has room for the first and forgets the others, and nothing else changes."""

from collections.abc import Collection, Mapping

import numpy as np

from fedpgp.errors import FedPGPError

MEMORY, ZERO_SHOT = "memory/", "zero_shot/"
"""Prefixes of tensors in a checkpoint: the method's server state, and zero-shot figures."""

NOTHING = {"committed": 0, "zero_shot_asked": -1}
"""Tensors of a checkpoint with an entry for each client -> that of one who never took part."""


def admitted(tensors: Mapping[str, np.ndarray], federation) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors with room for the clients that were admitted since.

    A newcomer is what every client was before round 1: nothing of it counts yet. What the method's
    server keeps of it is what it keeps of everybody at the start.

    Args:
        tensors: of the checkpoint.
        federation: the server's :class:`fedpgp.federation.Federation`, with the newcomers.

    Raises:
        FedPGPError: the method keeps something of all clients together.
    """
    before, clients = len(tensors["committed"]), federation.num_clients
    if before == clients:
        return dict(tensors)
    fresh = federation.server.initial_state()
    found = {}
    for name, tensor in tensors.items():
        if name in NOTHING or name.startswith(ZERO_SHOT):
            entry = NOTHING.get(name, np.nan)
            tensor = np.append(tensor, np.full(clients - before, entry, dtype=tensor.dtype))
        elif name.startswith(MEMORY):
            tensor = _with_rows(tensor, fresh.get(name.removeprefix(MEMORY), tensor), before)
        found[name] = tensor
    return found


def without_left(
    tensors: Mapping[str, np.ndarray], federation, left: Collection[int]
) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors in which the method's server state has of clients that have
    left what it has of those that never took part: nothing of them is sent to others any more.

    Args:
        tensors: of the checkpoint, with room for all clients.
        federation: as in :func:`admitted`.
        left: the clients that have left.
    """
    found, rows = dict(tensors), sorted(left)
    if rows:
        fresh = federation.server.initial_state()
        for name in federation.server.client_rows():
            if (kept := found.get(MEMORY + name)) is not None:
                found[MEMORY + name] = kept = kept.copy()
                kept[rows] = fresh[name][rows]
    return found


def _with_rows(tensor: np.ndarray, fresh: np.ndarray, before: int) -> np.ndarray:
    """Return a tensor of the server state as it was, with the rows of the newcomers from its
    start."""
    if tensor.shape == fresh.shape:
        return tensor
    if tensor.shape[1:] != fresh.shape[1:] or len(tensor) != before:
        raise FedPGPError(
            "the method's server keeps a tensor of all clients together, which cannot take one "
            "more: start a new run with all of them (init_from=RUN)"
        )
    return np.concatenate([tensor, fresh[before:]])


def not_yet_there(client: int) -> dict:
    """Return the row of a client that was admitted and whose node has not come yet: it is not drawn
    before it has."""
    counts = {"train_images": 0, "test_images": 0}
    return {"id": client, "domain": None, **counts, "trains": True}
