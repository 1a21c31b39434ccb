"""A round of a method's server, from tensors alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpgp.methods import Method, RoundContext

Params = dict[str, Tensor]


def server_round(
    method: Method,
    sent: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    state: Params,
    *,
    lr: float,
    clients: Sequence[int] | None = None,
    num_clients: int | None = None,
    seed: int = 0,
) -> tuple[Params, Params]:
    """Return (global tensors, server state) after a round of equal weights.

    Args:
        sent: the global tensors that clients were sent.
        updates: theirs, one a client in the first axis.
        state: the server's before the round.
        clients: who they are; by default all.
    """
    count = len(next(iter(updates.values())))
    clients = list(range(count)) if clients is None else list(clients)
    context = RoundContext(
        server_round=1,
        num_rounds=9,
        clients=clients,
        num_clients=num_clients or count,
        weights=torch.full((count,), 1 / count),
        global_params=dict(sent),
        updates=dict(updates),
        server_state=state,
        lr=lr,
        seed=seed,
    )
    return method.update_server({n: t.mean(0) for n, t in updates.items()}, context)
