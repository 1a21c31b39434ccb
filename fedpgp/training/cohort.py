"""Local training of a cohort: K clients with different amounts of data in one batched tensor
program.

Every client has its own parameters, optimizer state and batch order. Clients stand in order of
their number of steps, longest first, so the clients still training are always a prefix of every
tensor; one that has finished costs nothing any more. What a client computes depends on its own data
and on (seed, client, server_round) alone, not on the clients it trains with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.methods.base import Images, Method, Params, StepContext
from fedpgp.task import ClassSet
from fedpgp.training.batches import batches, drawn_views, gather
from fedpgp.training.optimizers import fresh_state, train_step
from fedpgp.training.settings import TrainingSettings


@dataclass
class CohortResult:
    """What training left, in the order the clients were given.

    Attributes:
        params: name -> (K, ...).
        optimizer_state: as :func:`fedpgp.training.optimizers.fresh_state`.
        loss: mean loss over a client's steps, (K,) float64.
        steps: steps a client made, (K,).
        failure: for each client None, or why its update must not be used ("loss is
            NaN at round 3, step 17").
    """

    params: Params
    optimizer_state: dict[str, Tensor]
    loss: np.ndarray
    steps: np.ndarray
    failure: list[str | None]


def train_cohort(
    method: Method,
    params: Params,
    images: Images,
    labels: Tensor,
    indices: Sequence[np.ndarray],
    classes: ClassSet,
    settings: TrainingSettings,
    *,
    global_params: Params | None = None,
    seed: int,
    clients: Sequence[int],
    server_round: int,
    optimizer_state: dict[str, Tensor] | None = None,
    plans: Sequence[list[np.ndarray]] | None = None,
    trainable: Sequence[str] | None = None,
) -> CohortResult:
    """Train K clients for one round.

    Args:
        method: gives losses and gradients.
        params: name -> (K, ...), every tensor at the start of the round; not changed.
        images: the whole training split, (N,), and behind it its other views (``settings.views``).
        labels: columns of ``classes``, (N,) int64.
        indices: the rows that belong to each client.
        classes: the classes to choose among.
        settings: epochs, batches, optimizer, schedule.
        global_params: the shared tensors as the server sent them, (K, ...); by
            default those among ``params``.
        seed, clients, server_round: what a client's batch order is derived from;
            ``clients`` are the logical ids.
        optimizer_state: of the clients' last round (``optimizer_state=keep``), or None to start
            anew.
        plans: each client's batches (positions among its images), as many in each epoch; None:
            those of the settings.
        trainable: tensors that are trained, of those that the method optimises; None: all of them.
    """
    device = labels.device
    if plans is None:
        plans = [
            batches(len(rows), settings, seed, c, server_round)
            for rows, c in zip(indices, clients, strict=True)
        ]
    order = sorted(
        range(len(plans)), key=lambda k: -len(plans[k])
    )  # longest first; stable, so ties keep their order
    place = torch.tensor(order, device=device)
    global_params = {
        name: tensor[place].clone()
        for name, tensor in (params if global_params is None else global_params).items()
    }
    params = {name: tensor[place].clone() for name, tensor in params.items()}
    trained = method.trainable(params)
    if trainable is not None:
        trained = [name for name in trained if name in trainable]
    optimizer = settings.make_optimizer()
    if optimizer_state is None:
        state = fresh_state(optimizer, {name: params[name] for name in trained})
    else:
        state = {name: tensor[place].clone() for name, tensor in optimizer_state.items()}
    plans = [plans[k] for k in order]
    rows = [indices[k] for k in order]
    ids = [clients[k] for k in order]
    views = [
        drawn_views(len(members), settings, seed, client, server_round)
        for members, client in zip(rows, ids, strict=True)
    ]
    lengths = np.array([len(plan) for plan in plans])
    lr = settings.learning_rate(server_round)
    # Apple's devices have no float64.
    total = torch.zeros(
        len(plans), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )
    failed = torch.zeros(len(plans), dtype=torch.int64, device=device)  # the first bad step, from 1
    of_loss = torch.zeros(len(plans), dtype=torch.bool, device=device)  # whether its loss was bad

    for step in range(int(lengths.max(initial=0))):
        active = int((lengths > step).sum())
        chosen = []
        for members, plan, seen in zip(rows[:active], plans, views, strict=False):
            epoch = step // (len(plan) // settings.epochs)
            chosen.append(members[plan[step]] + len(labels) * seen[epoch, plan[step]])
        batch = gather(images, labels, chosen, method.task.dtype)
        now = {name: tensor[:active] for name, tensor in params.items()}
        start = {name: tensor[:active] for name, tensor in global_params.items()}
        context = StepContext(server_round, step, ids[:active], start, lr, seed)
        loss, grads = method.gradients(now, batch, classes, context)
        rates = method.rates(now, context)
        for name in trained:
            p = now[name]
            slots = {slot: state[f"{slot}/{name}"][:active] for slot in optimizer.slots}
            count = state[f"step/{name}"][:active]
            train_step(optimizer, p, grads[name], slots, count, lr, rates.get(name))
        total[:active] += loss.to(total.dtype)
        bad = ~loss.isfinite()
        of_loss[:active] |= (failed[:active] == 0) & bad
        for p in (now[name] for name in trained):
            bad |= ~p.reshape(active, -1).isfinite().all(1)
        failed[:active] = torch.where((failed[:active] == 0) & bad, step + 1, failed[:active])

    back = torch.empty_like(place)
    back[place] = torch.arange(len(place), device=device)
    steps = lengths[back.cpu().numpy()]
    failure = [
        f"{'loss' if in_loss else 'update'} is NaN or Inf at round {server_round}, step {bad}"
        if bad
        else None
        for bad, in_loss in zip(failed[back].tolist(), of_loss[back].tolist(), strict=True)
    ]
    params = {name: tensor[back] for name, tensor in params.items()}
    global_params = {name: tensor[back] for name, tensor in global_params.items()}
    end = StepContext(server_round, int(lengths.max(initial=0)), clients, global_params, lr, seed)
    return CohortResult(
        method.finish_client(params, end),
        {name: tensor[back] for name, tensor in state.items()},
        total[back].cpu().double().numpy() / np.maximum(steps, 1),
        steps,
        failure,
    )
