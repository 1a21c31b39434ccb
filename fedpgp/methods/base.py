"""The interface of a method: one algorithm, one file, with its settings, a frozen dataclass.

A method works on a *cohort*: every tensor carries a leading client axis K, and every client of the
cohort is trained in one tensor program. A method never sees Flower or files; it says

* which tensors start where, and which are shared (averaged by the server) and which personal
  (never leave the client);
* the loss of a batch, one number for each client;
* how images and class names become logits, for the global and for the personal model;
* only where it differs from federated averaging: what a client does before and after its local
  training, how the server updates its tensors after a round, which state it keeps, and what it
  sends to one client alone.

Shapes, in the whole project: K clients, B images, C classes, M prompts, m context tokens, d width
of the text tower, e embedding, b rank. Besides, W is the width of the image tower, P patches,
R an image's side in pixels, S the clients of a round, n sequences that go through a tower
together, and ``...`` any leading axes.

``docs/add_a_method.md`` walks through a new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.batch import Batch, Images, LoadClientBatch
from fedpgp.methods.batch_gradients import batch_gradients
from fedpgp.registry import Registry
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet, Task
from fedpgp.updates.base import UpdateStep

Params = dict[str, Tensor]
Classifier = Tensor | Params
"""What images are compared with: unit-norm text features (K, C, e), or several tensors (K, ...)."""


@dataclass(frozen=True)
class StepContext:
    """Where a cohort stands: what a method may need beyond its own tensors and the images.

    Attributes:
        server_round: round of the run, from 1.
        step: of the local training, from 0.
        clients: logical ids of the K clients.
        global_params: the shared tensors as the server sent them, (K, ...); FedProx and
            Ditto pull towards them.
        lr: learning rate of this round.
        seed: of the run; draw from
            ``fedpgp.seeding.generator(seed, purpose, client, server_round, step)``.
    """

    server_round: int
    step: int
    clients: Sequence[int]
    global_params: Params
    lr: float
    seed: int


@dataclass(frozen=True)
class RoundContext:
    """A finished round, as the server sees it.

    Attributes:
        server_round: this round, from 1.
        num_rounds: of the whole run.
        clients: logical ids of the S clients whose updates count, ascending.
        num_clients: of the whole federation.
        weights: of the S clients in an average, (S,), sum to one.
        global_params: the shared tensors as the server sent them.
        updates: name -> (S, ...), what the clients sent; with :attr:`Method.needs_each_update`.
        server_state: the server's own tensors before this round.
        lr: learning rate of the round.
        seed: of the run.
    """

    server_round: int
    num_rounds: int
    clients: Sequence[int]
    num_clients: int
    weights: Tensor
    global_params: Params
    updates: Params
    server_state: Params
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

    name: ClassVar[str] = "component"
    """As in ``conf/method/``; :func:`register` sets it."""
    about: ClassVar[About]
    """What is said of it on pages and in tables."""
    small: ClassVar[Mapping[str, object]] = {}
    """Settings for a model of two blocks a tower and features of 16 numbers, as tests have it."""
    sent_copies: ClassVar[tuple[str, ...]] = ()
    """Personal tensors that are copies of what the client sends: nothing that is private."""
    Settings: ClassVar[type] = NoSettings
    learns: ClassVar[bool] = True
    """False for a method without rounds (zero-shot)."""
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    """Its inputs: the fields of :class:`Images` that it needs."""
    training_inputs: ClassVar[tuple[str, ...]] = ()
    """Inputs that only its loss needs."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """Tensors that are kept or sent with the trainable ones and are not optimised; ``gradients``
    may change them in place."""
    starts_as_shared: ClassVar[bool] = False
    """True: a client's tensors are drawn as the shared ones are, so that Ditto's personal prompt
    starts at p_G; False: from draws of their own. Either way all clients start alike, unless
    ``method.personal_start=per_client``."""
    precomputes_for_evaluation: ClassVar[bool] = True
    """False: what :meth:`precompute` makes is for training alone; evaluation does without it."""
    equal_weights: ClassVar[bool] = False
    """True: the server averages clients alike; False: by their number of images.
    ``method.weighting`` says otherwise where a method's configuration has it."""
    needs_each_update: ClassVar[bool] = False
    """True: :meth:`update_server` reads ``context.updates``; False: their average is enough."""
    averages_itself: ClassVar[str] = ""
    """How :meth:`update_server` averages, whatever the strategy does: every strategy but ``fedavg``
    is refused; empty: the strategy averages."""
    model_in_server_state: ClassVar[str] = ""
    """What of the global model is in the server state, and so is not among the shared tensors that
    ``init_from`` takes; empty: nothing."""
    no_shared_start: ClassVar[str] = ""
    """Why clients do not begin at the shared tensors, so that ``init_from`` is refused; empty: they
    do."""
    delta_params: ClassVar[tuple[str, ...]] = ()
    """Shared tensors whose update is a difference, not a new value."""
    images_a_pass: ClassVar[int | None] = None
    """Images of a client that are differentiated together; None: the whole batch."""
    per_image: ClassVar[str | None] = None
    """How ``privacy=image`` finds the gradient of one image, ``"shared"`` or ``"copies"``; None: it
    is refused (:mod:`fedpgp.training.image_gradients`). It is not inherited."""
    differentiate = staticmethod(batch_gradients)
    """Gives the loss and its gradients; ``privacy=image`` puts its own in the place."""
    no_class_embeddings: ClassVar[str] = ""
    """Why :meth:`global_classifier` has no class embeddings that follow what clients send."""

    def __init__(self, settings, task: Task):
        self.settings, self.task = settings, task

    @property
    def shares_one_model(self) -> bool:
        """Whether all clients use one model, the global one: nothing of it is personal."""
        return type(self).personal_classifier is Method.personal_classifier

    @classmethod
    def settings_of(cls, blocks: int) -> object:
        """Return settings for a model of so many blocks a tower: the defaults, where they fit."""
        return cls.Settings()

    def step_work(self, size: StepSize) -> Work:
        """Return the matrix products that one client's step cannot do without: by default, one
        context through the text tower and back."""
        return size.texts()

    # What is trained. -----------------------------------------------------------------------------

    def init_shared(self, rng: np.random.Generator) -> Params:
        """Return the tensors the server owns, at the start, without a client axis. None by
        default (local-only)."""
        return {}

    def init_personal(self, rng: np.random.Generator) -> Params:
        """Return the tensors each client owns and never sends, at the start, without a
        client axis. None by default.

        ``rng`` is the same for all clients, and with :attr:`starts_as_shared` in the state
        :meth:`init_shared` got it in.
        """
        return {}

    # How it is trained. ---------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        """Return tensors (K, ...) to put into ``params``, new ones or in the place of
        others; without gradients.

        Called before a cohort's training and, with
        :attr:`precomputes_for_evaluation`, before its evaluation.

        Args:
            params: shared tensors as the server sent them, the client's personal ones,
                and :meth:`download_for`'s.
            load_batch: loads all training images of each client, or only their labels.
            classes: those that are trained.
        """
        return {}

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        """Return the loss of each client's batch, (K,)."""
        term = self.image_term(params, batch, classes, step)
        free = self.free_term(params, classes, step)
        return term if free is None else term + free

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        """Return the part of the loss that images have, (K,). By default the cross-entropy
        of the personal model."""
        logits = self.logits(self.personal_classifier(params, classes), batch.images, classes)
        return cross_entropy(logits, batch.labels, batch.weights)

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        """Return the part of the loss that no image has, (K,); None: there is none."""
        return None

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        """Return the loss (K,) and the gradient of every trainable tensor, each client's from its
        own loss alone. Override it to change those that ``super().gradients`` gives."""
        return self.differentiate(self, params, batch, classes, step)

    def trainable(self, params: Params) -> list[str]:
        """Return the names of the tensors that are optimised: all that are not :attr:`buffers`."""
        return [name for name in params if name not in self.buffers]

    def rates(self, params: Params, step: StepContext) -> Params:
        """Return learning rates of single tensors, relative to the run's: name -> factor
        that broadcasts to (K, ...).

        The other tensors have the run's rate. At 0 a tensor and its optimizer state stay as they
        are, without weight decay, as torch leaves a tensor without a gradient."""
        return {}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        """Return what each client keeps and sends after its last step, by name. By
        default, what it trained."""
        return params

    def contexts(self, training: bool) -> int:
        """Return how many contexts of one client go through the text tower in a step of training,
        or for its evaluation. The size of a cohort is computed from it."""
        return 2

    def image_values(self, images: int) -> int:
        """Return tokens x W x blocks of the image tower for one client's images in a step, where
        gradients go through it. The size of a cohort is computed from it too."""
        return 0

    def begun_with(self, shared: Arrays, update: Arrays) -> Arrays:
        """Return the shared tensors as the client that sends this update began with them. The
        norm of its update is of the difference from these. By default, all as they were sent.

        Args:
            shared: as the server sent them.
            update: what the client sends, finite and of the same shapes.
        """
        return shared

    # How it predicts. -----------------------------------------------------------------------------

    @abstractmethod
    def global_classifier(self, shared: Params, classes: ClassSet) -> Classifier | None:
        """Return the global model's classifier, from the shared tensors; None: there is none."""

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        """Return the classifier of each client's personal model, from all its tensors.

        By default the global model's: a method without personal tensors has one model for all.
        """
        classifier = self.global_classifier(params, classes)
        assert classifier is not None, (
            f"{type(self).__name__} has no global model: it must define personal_classifier"
        )
        return classifier

    def logits(self, classifier: Classifier, images: Images, classes: ClassSet) -> Tensor:
        """Return the logits (K, B, C) of the method's own models, from a classifier (K, C,
        e) and images (K, B)."""
        assert isinstance(classifier, Tensor), (
            f"{type(self).__name__} has a classifier of several tensors: it must define logits"
        )
        return cosine_logits(classifier, images.features, self.task.logit_scale)

    @property
    def answers_by_cosine(self) -> bool:
        """Whether :meth:`logits` is CLIP's cosine with one feature a class."""
        return type(self).logits is Method.logits

    # What it promises. ----------------------------------------------------------------------------

    def privacy(self, rounds: int) -> dict | None:
        """Return what the noise of this method guarantees after so many rounds, for
        summary.json; None without noise.

        Returns:
            ``unit`` (whose presence is hidden, or "none"), ``epsilon`` and ``delta`` (None: not
            accounted), ``noise_multiplier`` (deviation of the noise over the clipping norm),
            ``clip``, ``sampling``, ``rate``, ``rounds``, ``accountant``, and ``seeded``: whether
            the noise comes from the run's seed, so that who knows it can take the noise off.
        """
        return None

    def why_not_per_image(self) -> str | None:
        """Return why these settings do not go with ``privacy=image``; None: nothing is said."""
        return None

    # What the server does beyond the strategy's averaging. ----------------------------------------

    def update_steps(self) -> Sequence[UpdateStep]:
        """Return the steps of this method that updates go through, before a configuration's."""
        return ()

    def init_server_state(self, clients: int) -> Params:
        """Return the tensors that the server keeps from round to round, at the start."""
        return {}

    @classmethod
    def depends_on_rounds(cls, settings: object) -> bool:
        """Whether a round counts by its place among all of the run, so that a finished run
        can be given no more."""
        return False

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        """Return the next shared tensors and the next server state.

        Args:
            averaged: the shared tensors as the strategy made them of the updates.
            context: updates, weights, server state.
        """
        return averaged, context.server_state

    def download_for(self, client: int, server_state: Params) -> Params:
        """Return tensors that one client alone is sent; they belong into :attr:`buffers`."""
        return {}


PHASE = "phase"
"""A method that names it among its :attr:`Method.buffers` gets it in ``params``: (K,) int64, which
of its phases (:class:`fedpgp.protocols.Phase`) each client is in, from 0. A change between two
rounds says that the client's images and classes are others; which, nobody tells."""

METHODS: Registry[type[Method]] = Registry("fedpgp.methods", Method)
"""Name -> method. A new file in this folder needs no mention anywhere else."""

register = METHODS.register


def cosine_logits(features: Tensor, images: Tensor, scale: float) -> Tensor:
    """Return CLIP's logits, ``scale`` times the cosine: (..., C, e) and (..., B, e) -> (..., B,
    C)."""
    return scale * images @ features.transpose(-1, -2)


def mask_other_classes(logits: Tensor, client_classes: Tensor) -> Tensor:
    """Return logits (K, B, C) whose softmax is zero outside of each client's classes.

    Args:
        client_classes: (K, C), True for the classes that count.
    """
    return logits.masked_fill(~client_classes.unsqueeze(1), torch.finfo(logits.dtype).min / 2)
