"""How a client trains in one round: epochs, batches, optimizer and the schedule of its rate."""

import math
from dataclasses import dataclass

from fedpgp.config import TrainingSection
from fedpgp.training.optimizers import SGD, Adam, make_optimizer


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(TrainingSection):
    """How a client trains in one round: the configuration's ``training`` and what goes with it.

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
    rounds: int = 1
    views: int | None = 1

    def make_optimizer(self) -> SGD | Adam:
        """Return the optimizer; its state is :func:`fedpgp.training.optimizers.fresh_state`."""
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
