"""The interface of a method: one algorithm, one file, its settings a frozen dataclass beside it.

A method works on a *cohort*: every learned tensor carries a leading client axis K, and every client of the cohort is
trained in one tensor program. A method never sees Flower, files or rounds of communication; it says

* which tensors start where, and which are shared (averaged by the server) and which personal (never leave the client);
* the loss of a batch, one number a client;
* how features become logits, for the global and for the personal model.

``docs/add_a_method.md`` walks through a new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpgp.losses import cross_entropy
from fedpgp.task import Candidates, Task

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One step's images of every client in the cohort.

    Attributes:
        images: unit-norm image features, (K, B, embed).
        labels: columns of the candidate classes, (K, B) int64.
        weights: (K, B); sum to one over a client's real images, zero for the padding of a shorter batch.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Step:
    """Where a cohort stands: what a method may need beyond its own tensors and the images.

    Attributes:
        round: of the run, from 1.
        step: of the local training, from 0.
        clients: logical ids of the K clients.
        received: the shared tensors as the server sent them this round, (K, ...); FedProx and Ditto pull towards them.
        lr: learning rate of this round.
        seed: of the run; draw from ``fedpgp.seeding.generator(seed, purpose, client, round, step)``.
    """

    round: int
    step: int
    clients: Sequence[int]
    received: Params
    lr: float
    seed: int


@dataclass(frozen=True)
class NoSettings:
    """A method without settings of its own."""


class Method(ABC):
    """A federated prompt-learning algorithm.

    Args:
        settings: an instance of the class's ``Settings``.
        task: the model, the classes, how prompts start.
    """

    name: ClassVar[str]
    Settings: ClassVar[type] = NoSettings
    learns: ClassVar[bool] = True
    """False for a method without rounds (zero-shot)."""

    def __init__(self, settings, task: Task):
        self.settings, self.task = settings, task

    # What is learned. -------------------------------------------------------------------------------------------------

    def init_shared(self, rng: np.random.Generator) -> Params:
        """The tensors the server owns, at the start: name -> (shape). None by default: a local-only method."""
        return {}

    def init_personal(self, rng: np.random.Generator) -> Params:
        """The tensors each client owns and never sends, at the start: name -> (shape). None by default."""
        return {}

    # How it is trained. -----------------------------------------------------------------------------------------------

    def loss(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> Tensor:
        """The local objective: (K,), the loss of each client's batch. By default the cross-entropy of the personal
        model."""
        logits = self.logits(self.personal_features(params, classes), batch.images)
        return cross_entropy(logits, batch.labels, batch.weights)

    def gradients(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> tuple[Tensor, Params]:
        """The loss (K,) and the gradient of every learned tensor, each client's from its own loss alone.

        Clients share nothing inside a step, so the gradient of the sum over clients is each client's own. Override it
        for methods that change gradients (projection, clipping, noise, control variates).
        """
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        with torch.enable_grad():
            loss = self.loss(leaves, batch, classes, step)
            grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(leaves, grads, strict=True))

    # How it answers. --------------------------------------------------------------------------------------------------

    @abstractmethod
    def global_features(self, shared: Params, classes: Candidates) -> Tensor | None:
        """Class features of the global model, (..., classes, embed), from the shared tensors (any leading axes); None:
        there is none."""

    def personal_features(self, params: Params, classes: Candidates) -> Tensor:
        """Class features of each client's own model, (K, classes, embed), from shared and personal tensors together.

        By default the global model's: a method without personal tensors has one model for all.
        """
        features = self.global_features(params, classes)
        assert features is not None, f"{type(self).__name__} has no global model: it must define personal_features"
        return features

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """(..., classes, embed) and (..., B, embed) -> (..., B, classes): how the method's own models answer."""
        return cosine_logits(features, images, self.task.logit_scale)


def cosine_logits(features: Tensor, images: Tensor, scale: float) -> Tensor:
    """CLIP's logits, ``scale`` times the cosine: (..., classes, embed), (..., B, embed) -> (..., B, classes)."""
    return scale * images @ features.transpose(-1, -2)
