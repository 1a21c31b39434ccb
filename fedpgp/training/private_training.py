"""Local training with ``privacy=image`` (:mod:`fedpgp.updates.image_privacy`): batches by Poisson
sampling, images' gradients clipped one by one, noise on their sum, and each client's account.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError
from fedpgp.methods.base import Batch, Method, Params, StepContext
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator, secret_uniform
from fedpgp.task import ClassSet
from fedpgp.training.batches import steps_of_epoch
from fedpgp.training.image_gradients import image_gradients
from fedpgp.training.settings import TrainingSettings
from fedpgp.updates.accounting import Spent, calibrate_composed, composed_epsilon, resolve_delta
from fedpgp.updates.clipping import clipped, norms
from fedpgp.updates.gaussian import standard_normal
from fedpgp.updates.image_privacy import (
    MOST_EPSILON,
    NO_BOUND,
    TRAINS_NO_MORE,
    ImagePrivacySettings,
    image_privacy_of,
)

ACCOUNT = "privacy/account"
"""A client's account in its private state: (n, 3) float64, a row a kind of noised sums, with their
noise multiplier, rate and number."""


class BudgetSpent(FedPGPError):
    """A client that trained once more would pass the epsilon it may have."""


@dataclass(frozen=True)
class OwnersBound:
    """What the owner of a deployed client's images allows.

    Attributes:
        most: epsilon of all runs together (``max-epsilon`` of its node).
        earlier: noised sums of other runs on the same images.
    """

    most: float = math.inf
    earlier: Spent = ()


@dataclass
class PrivateWork:
    """What a client does in a round, and its account behind it.

    Attributes:
        client, server_round, epochs: which round of which client.
        images: N.
        rate: q, of an image in a step.
        steps: noised sums of the round.
        noise: z.
        delta: of the client.
        spent: all noised sums, with those of this round.
        settings: of the run.
        seen, over: gradients of images so far, and how many of them were clipped.
    """

    client: int
    server_round: int
    epochs: int
    images: int
    rate: float
    steps: int
    noise: float
    delta: float
    spent: Spent
    settings: ImagePrivacySettings
    seen: int = field(default=0, init=False)
    over: int = field(default=0, init=False)

    @property
    def expected(self) -> float:
        """Images of a step, in the mean."""
        return self.rate * self.images

    @property
    def account(self) -> Tensor:
        """The account as :data:`ACCOUNT` has it."""
        return torch.tensor(self.spent, dtype=torch.float64)

    def figures(self) -> dict[str, float]:
        """Return ``client_metrics`` of :class:`fedpgp.updates.image_privacy.ImagePrivacy`."""
        another = _with(self.spent, self.noise, self.rate, self.steps)
        s = self.settings
        said = account_figures(self.spent, self.delta, s.accountant) | {
            "noise": self.noise,
            "rate": self.rate,
            "last": float(not within(another, self.delta, s.most, s.accountant)),
            "clipped": self.over / max(1, self.seen),
        }
        return {f"image.{name}": value for name, value in said.items()}


class PrivateTraining:
    """The clients of a federation that train with ``privacy=image``.

    Args:
        settings: of the privacy.
        federated_split: the clients' numbers of images, in all rounds.
        training: how a client trains in a round.
        seed: of batches and noise, where they are to be repeated.

    Attributes:
        owner: what a deployed client's owner allows; set before :meth:`work`.
    """

    def __init__(
        self,
        settings: ImagePrivacySettings,
        federated_split: FederatedSplit,
        training: TrainingSettings,
        seed: int,
    ):
        self.settings, self.federated_split = settings, federated_split
        self.training, self.seed = training, seed
        self.owner = OwnersBound()

    def delta(self, client: int) -> float:
        """Return the delta of a client.

        Raises:
            FedPGPError: it guarantees nothing.
        """
        images = len(self.federated_split.clients[client].train_indices)
        return resolve_delta(self.settings.delta, max(1, images), "image")

    def work(
        self, client: int, server_round: int, epochs: int, account: Tensor | None
    ) -> PrivateWork:
        """Return what a client does in a round.

        Args:
            client, server_round: which.
            epochs: of this client in this round.
            account: before it; None: nothing spent.

        Raises:
            BudgetSpent: it would pass the epsilon that it may have.
            FedPGPError: a delta that guarantees nothing.
        """
        split, s = self.federated_split.clients[client], self.settings
        images = len(split.train_at(server_round))
        delta = self.delta(client)
        rate = self._rate(images)
        steps = epochs * steps_of_epoch(images, self.training)
        noise = s.noise if s.epsilon is None else self._calibrated(client, delta)
        before = [] if account is None else account.tolist()
        spent = _with(before, noise, rate, steps)
        if not within(spent, delta, s.most, s.accountant):
            raise BudgetSpent(
                f"{TRAINS_NO_MORE}: another round would make its epsilon larger than {s.most:g}"
            )
        # The server chooses the delta: a larger one than is usual would make epsilon small.
        strict = min(delta, resolve_delta(None, max(1, len(split.train_indices)), "image"))
        if not within([*self.owner.earlier, *spent], strict, self.owner.most, s.accountant):
            raise BudgetSpent(
                f"{TRAINS_NO_MORE}: with its other runs, another round would make its epsilon "
                f"larger than max-epsilon={self.owner.most:g} of its node"
            )
        return PrivateWork(
            client, server_round, epochs, images, rate, steps, noise, delta, spent, s
        )

    @contextmanager
    def at_work(
        self, method: Method, work: Sequence[PrivateWork]
    ) -> Iterator[list[list[np.ndarray]]]:
        """Give the batches of these clients; inside the block the method's gradients are
        private."""
        method.differentiate = PrivateGradients({each.client: each for each in work})
        try:
            yield [self._batches(each) for each in work]
        finally:
            del method.differentiate

    def _batches(self, work: PrivateWork) -> list[np.ndarray]:
        """Positions among a client's images, of each step: each image by its own draw."""
        found = []
        for step in range(work.steps):
            if self.settings.seeded_noise:
                about = (work.client, work.server_round, step)
                uniform = generator(self.seed, "privacy batches", *about).random(work.images)
            else:
                uniform = secret_uniform(work.images)
            found.append(np.flatnonzero(uniform < work.rate))
        return found

    def _rate(self, images: int) -> float:
        return min(1.0, self.training.batch_size / max(1, images))

    def _calibrated(self, client: int, delta: float) -> float:
        """z, for a client that takes part in every round of the run."""
        split, rounds = self.federated_split.clients[client], self.training.rounds
        starts = sorted({1, *(min(max(1, p.since), rounds + 1) for p in split.phases), rounds + 1})
        plan: Counter[float] = Counter()
        for since, until in zip(starts, starts[1:], strict=False):
            images = len(split.train_at(since))
            steps = self.training.epochs * steps_of_epoch(images, self.training)
            plan[self._rate(images)] += (until - since) * steps
        kinds = tuple(sorted(plan.items()))
        return _calibrated(self.settings.epsilon, kinds, delta, self.settings.accountant)


class PrivateGradients:
    """Takes the place of :func:`fedpgp.methods.batch_gradients.batch_gradients`: clipped gradients
    of images, summed and noised, over the images of a step in the mean; and the gradient of the
    terms without images, as it is.

    An image whose gradient has no finite norm adds zero.

    Args:
        work: of each client.
    """

    def __init__(self, work: Mapping[int, PrivateWork]):
        self._work = work

    def __call__(
        self, method: Method, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        """As :meth:`fedpgp.methods.Method.gradients`; the loss, of the images that were drawn, has
        no noise."""
        names = method.trainable(params)
        loss, grads = self._without_images(method, params, classes, step)
        for k, client in enumerate(step.clients):
            real = int((batch.weights[k] > 0).sum())
            own = {name: tensor[k : k + 1] for name, tensor in params.items()}
            sent = {name: tensor[k : k + 1] for name, tensor in step.global_params.items()}
            about = replace(step, clients=[client], global_params=sent)
            images = batch[k : k + 1, :real]
            mean, total = self._summed(method, own, images, classes, about, names)
            work = self._work[client]
            if work.noise > 0:
                deviation = work.noise * work.settings.clip
                noise = self._noise(work, step, total)
                total = {n: t + deviation * noise[n] for n, t in total.items()}
            loss[k] += mean
            for name in names:
                grads[name][k] += (total[name] / work.expected).to(grads[name].dtype)
        return loss, grads

    def _without_images(
        self, method: Method, params: Params, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        leaves = {name: params[name].detach().requires_grad_() for name in method.trainable(params)}
        with torch.enable_grad():
            free = method.free_term({**params, **leaves}, classes, step)
            if free is None:
                first = next(iter(params.values()))
                zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
                return first.new_zeros(len(first)), zeros
            grads = torch.autograd.grad(
                free.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return free.detach().clone(), {n: g.clone() for n, g in zip(leaves, grads, strict=True)}

    def _summed(
        self,
        method: Method,
        own: Params,
        images: Batch,
        classes: ClassSet,
        step: StepContext,
        names: Sequence[str],
    ) -> tuple[Tensor, Params]:
        """The mean loss of a client's images, and the sum of their clipped gradients."""
        work = self._work[step.clients[0]]
        wide = torch.float32 if images.labels.device.type == "mps" else torch.float64
        total = {name: torch.zeros_like(own[name][0], dtype=wide) for name in names}
        losses, count = torch.zeros((), dtype=wide, device=images.labels.device), 0
        for found, gradients in image_gradients(method, own, images, classes, step):
            gradients = {name: gradient.to(wide) for name, gradient in gradients.items()}
            good = norms(gradients).isfinite() & found.isfinite()
            if not good.any():
                continue
            bounded, before = clipped(
                {name: gradient[good] for name, gradient in gradients.items()}, work.settings.clip
            )
            total = {name: tensor + bounded[name].sum(0) for name, tensor in total.items()}
            losses, count = losses + found[good].to(wide).sum(), count + int(good.sum())
            work.seen += len(before)
            work.over += int((before > work.settings.clip).sum())
        return losses / max(1, count), total

    def _noise(self, work: PrivateWork, step: StepContext, like: Params) -> Params:
        rng = None
        if work.settings.seeded_noise:
            about = (work.client, step.server_round, step.step)
            rng = generator(step.seed, "privacy image noise", *about)
        return {n: standard_normal(tuple(t.shape), rng).to(t) for n, t in sorted(like.items())}


def within(spent: Spent, delta: float, most: float, accountant: str) -> bool:
    """Return whether noised sums keep within an epsilon. Either accountant gives a bound; that of
    PLD is asked where the quick one is not enough."""
    if most == math.inf:
        return True
    quick = composed_epsilon(spent, delta, "rdp")
    if quick <= most or accountant == "rdp":
        return quick <= most
    return composed_epsilon(spent, delta, accountant) <= most


def account_figures(spent: Spent, delta: float, accountant: str) -> dict[str, float]:
    """Return what an account amounts to: ``epsilon`` (:data:`NO_BOUND` without noise), ``delta``,
    the least ``noise`` and the largest ``rate`` of its sums, and their number, ``steps``."""
    found = NO_BOUND
    if all(noise > 0 for noise, _, _ in spent):
        found = min(composed_epsilon(spent, delta, accountant), MOST_EPSILON)
    return {
        "epsilon": found,
        "delta": delta,
        "noise": min((noise for noise, _, _ in spent), default=0.0),
        "rate": max((rate for _, rate, _ in spent), default=0.0),
        "steps": float(sum(count for _, _, count in spent)),
    }


def private_training(
    config: Mapping, federated_split: FederatedSplit, training: TrainingSettings
) -> PrivateTraining | None:
    """Return what a configuration with ``privacy=image`` trains with; None with any other."""
    settings = image_privacy_of(config)
    if settings is None:
        return None
    return PrivateTraining(settings, federated_split, training, config["seed"])


def _with(spent: Spent, noise: float, rate: float, steps: int) -> Spent:
    """The account with so many sums more."""
    kinds: Counter[tuple[float, float]] = Counter()
    for kind_noise, kind_rate, count in [*spent, (noise, rate, steps)]:
        kinds[kind_noise, kind_rate] += int(count)
    return [(kind[0], kind[1], count) for kind, count in sorted(kinds.items())]


_calibrated = lru_cache(maxsize=4096)(calibrate_composed)
