"""Local training of a cohort: K clients with different amounts of data in one batched tensor
program.

Every client has its own parameters, optimizer state and batch order. Clients stand in order of
their number of steps, longest first, so the clients still training are always a prefix of every
tensor; one that has finished costs nothing any more. What a client computes depends on its own data
and on (seed, client, server_round) alone, not on the clients it trains with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.methods.base import Batch, Images, Method, Params, StepContext
from fedpgp.optimizers import SGD, Adam, fresh_state, make_optimizer
from fedpgp.seeding import generator
from fedpgp.task import ClassSet

MOST_EPOCHS = 2**20
"""More than anybody has in a round: what the numbers of new views are made of."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a client trains in one round.

    Attributes:
        epochs: passes over the client's images (E).
        batch_size: images a step.
        lr: learning rate at its highest.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        momentum: of SGD.
        betas, eps: of Adam and AdamW.
        weight_decay: on every learned tensor.
        schedule: ``constant``, ``cosine`` (to zero at the last round) or ``step`` (times ``gamma``
            every ``step_rounds`` rounds).
        warmup_rounds: rounds over which the rate rises linearly to ``lr``.
        step_rounds, gamma: of the ``step`` schedule.
        rounds: of the whole run, for ``cosine``.
        shuffle: a new order every epoch; False walks the images in stored order.
        drop_last: leave out an epoch's last partial batch (when there is a full one).
        views: views of each training image: 1 is the plain image, V > 1 draws one of V augmented
            ones for every image and epoch, None has a new one every time.
    """

    epochs: int = 2
    batch_size: int = 32
    lr: float = 0.001
    optimizer: str = "sgd"
    momentum: float = 0.9
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    schedule: str = "constant"
    warmup_rounds: int = 0
    step_rounds: int = 10
    gamma: float = 0.1
    rounds: int = 1
    shuffle: bool = True
    drop_last: bool = False
    views: int | None = 1

    def __post_init__(self):
        if self.schedule not in ("constant", "cosine", "step"):
            raise FedPGPError(
                unknown("training.schedule", self.schedule, ["constant", "cosine", "step"])
            )
        check_number("training.step_rounds", self.step_rounds, least=1, whole=True)
        check_number("training.gamma", self.gamma, above=0)
        betas = self.betas
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
            raise FedPGPError(
                f"training.betas={betas!r} cannot work; it is two numbers, [0.9,0.999]"
            )
        for beta in self.betas:
            check_number("training.betas", beta, above=0, below=1)
        check_number("training.eps", self.eps, above=0)
        self.make_optimizer()

    def make_optimizer(self) -> SGD | Adam:
        """Return the optimizer; its state is :func:`fedpgp.optimizers.fresh_state`."""
        return make_optimizer(
            self.optimizer, self.momentum, self.weight_decay, self.betas, self.eps
        )

    def learning_rate(self, server_round: int) -> float:
        """The rate of a round (from 1); the same for every client, whenever it was last sampled."""
        if server_round <= self.warmup_rounds:
            return self.lr * server_round / (self.warmup_rounds + 1)
        done = server_round - 1 - self.warmup_rounds
        if self.schedule == "cosine":
            return (
                self.lr
                * 0.5
                * (1 + math.cos(math.pi * done / max(1, self.rounds - self.warmup_rounds)))
            )
        if self.schedule == "step":
            return self.lr * self.gamma ** (done // self.step_rounds)
        return self.lr


@dataclass
class CohortResult:
    """What training left, in the order the clients were given.

    Attributes:
        params: name -> (K, ...).
        optimizer_state: as :func:`fedpgp.optimizers.fresh_state`.
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


def batches(
    images: int, settings: TrainingSettings, seed: int, client: int, server_round: int
) -> list[np.ndarray]:
    """A client's batches in one round: positions among its images, each (<= batch_size,).

    The order of epoch e comes from (seed, client, server_round, e) alone.
    """
    chunks = []
    for epoch in range(settings.epochs):
        order = np.arange(images)
        if settings.shuffle:
            order = generator(seed, "batches", client, server_round, epoch).permutation(images)
        parts = [order[i : i + settings.batch_size] for i in range(0, images, settings.batch_size)]
        if settings.drop_last and len(parts) > 1 and len(parts[-1]) < settings.batch_size:
            parts.pop()
        chunks += parts
    return chunks


def drawn_views(
    images: int, settings: TrainingSettings, seed: int, client: int, server_round: int
) -> np.ndarray:
    """Which view of each of a client's images is seen in each epoch of a round,
    (epochs, images) from 0."""
    if settings.views is None:
        epochs = server_round * MOST_EPOCHS + np.arange(
            settings.epochs
        )  # a slow client has fewer in some rounds
        return np.repeat(epochs[:, None], images, axis=1)
    rng = generator(seed, "views", client, server_round)
    return rng.integers(settings.views, size=(settings.epochs, images))


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
    """
    device = labels.device
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
    trainable = method.trainable(params)
    optimizer = settings.make_optimizer()
    if optimizer_state is None:
        state = fresh_state(optimizer, {name: params[name] for name in trainable})
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
        state["step"][:active] += 1
        rates = method.rates(now, context)
        for name in trainable:
            p = now[name]
            slots = {slot: state[f"{slot}/{name}"][:active] for slot in optimizer.slots}
            rate = lr * rates[name] if name in rates else lr
            optimizer.update(p, grads[name], slots, rate, state["step"][:active])
        total[:active] += loss.to(total.dtype)
        bad = ~loss.isfinite()
        for p in (now[name] for name in trainable):
            bad |= ~p.reshape(active, -1).isfinite().all(1)
        failed[:active] = torch.where((failed[:active] == 0) & bad, step + 1, failed[:active])

    back = torch.empty_like(place)
    back[place] = torch.arange(len(place), device=device)
    steps = lengths[back.cpu().numpy()]
    failure = [
        f"loss or update is NaN or Inf at round {server_round}, step {bad}" if bad else None
        for bad in failed[back].tolist()
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


def gather(images: Images, labels: Tensor, rows: Sequence[np.ndarray], dtype: torch.dtype) -> Batch:
    """The images of these rows, one list of rows a client. A shorter list is padded with its own
    images again, at weight zero. Row ``v * N + i`` is view v of image i of N."""
    counts = [len(members) for members in rows]
    size = max([1, *counts])
    counts = torch.tensor(counts, device=labels.device).unsqueeze(1)
    index = torch.as_tensor(
        np.stack([np.resize(members, size) for members in rows]), device=labels.device
    )
    inside = torch.arange(size, device=labels.device) < counts
    return Batch(images[index], labels[index % len(labels)], inside.to(dtype) / counts.clamp(min=1))
