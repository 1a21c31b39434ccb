"""The parts of a federation: a split data set, a frozen model, a method, and what works with them.

Each is made when it is first used: a server that only averages never opens an image. No Flower.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from fedpgp.client_models import ClientModels
from fedpgp.config import MethodSection
from fedpgp.data import Dataset
from fedpgp.evaluation.evaluator import EvalResult, Evaluator
from fedpgp.inputs import FeatureSource, Inputs
from fedpgp.methods import Method
from fedpgp.protocols import FederatedSplit
from fedpgp.server_update import ServerUpdate
from fedpgp.task import ClassSet
from fedpgp.training import TrainingSettings
from fedpgp.training.cohort_size import Cohorts
from fedpgp.training.private_training import PrivateTraining
from fedpgp.training.trainer import Trainer, TrainResult

Progress = Callable[[int, int, str], None]
"""Is told how many of how many are done, and of what: ``(120, 480, "encoding test images")``."""


class Federation:
    """Clients that own images, one frozen model, one method.

    Args:
        method: with its task (model, classes, precision), or what makes it.
        dataset: what is split.
        federated_split: which client has which images.
        features: image features of the train and the test split.
        training: how a client trains in a round.
        patches, mirrored, features_raw: other features (:class:`fedpgp.methods.base.Images`).
        seed: of everything random.
        cohort_size: clients trained in one tensor program; None takes what memory allows.
        keep_optimizer: a client keeps its own optimizer state from round to round.
        personal_start: ``shared``: all clients' private tensors start alike; or ``per_client``.
        weighting: ``images`` or ``equal``: how the server weighs clients; None: as the method does.
        slow_clients: fraction of the clients that finish only some of their local epochs.
        private: how clients train with ``privacy=image``; None: without it.
    """

    def __init__(
        self,
        method: Method | Callable[[], Method],
        dataset: Dataset,
        federated_split: FederatedSplit,
        features: FeatureSource,
        training: TrainingSettings,
        *,
        patches: FeatureSource | None = None,
        mirrored: FeatureSource | None = None,
        features_raw: FeatureSource | None = None,
        seed: int = 0,
        cohort_size: int | None = None,
        keep_optimizer: bool = False,
        personal_start: str = "shared",
        weighting: str | None = None,
        slow_clients: float = 0.0,
        private: PrivateTraining | None = None,
    ):
        MethodSection.check(personal_start=personal_start, weighting=weighting)
        self._method, self.dataset, self.federated_split = method, dataset, federated_split
        self._sources = {"features": features, "features_raw": features_raw}
        self._sources |= {"patches": patches, "mirrored": mirrored}
        self.training, self.seed, self._cohort_size = training, seed, cohort_size
        self._personal_start, self._weighting, self.private = personal_start, weighting, private
        self._keep_optimizer, self._slow_clients = keep_optimizer, slow_clients
        self.progress: Progress = lambda done, total, what: None

    @cached_property
    def method(self) -> Method:
        return self._method if isinstance(self._method, Method) else self._method()

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(self.method, self.dataset, self._sources, self.training)

    @cached_property
    def server(self) -> ServerUpdate:
        return ServerUpdate(
            self.method, self.federated_split, self.training, self.seed, self._weighting
        )

    @cached_property
    def models(self) -> ClientModels:
        return ClientModels(
            method=self.method,
            federated_split=self.federated_split,
            inputs=self.inputs,
            server=self.server,
            seed=self.seed,
            personal_start=self._personal_start,
        )

    @cached_property
    def cohorts(self) -> Cohorts:
        return Cohorts(self.method, self.federated_split, self.training, self._cohort_size)

    @cached_property
    def trainer(self) -> Trainer:
        return Trainer(
            method=self.method,
            federated_split=self.federated_split,
            inputs=self.inputs,
            models=self.models,
            cohorts=self.cohorts,
            settings=self.training,
            seed=self.seed,
            keep_optimizer=self._keep_optimizer,
            slow_clients=self._slow_clients,
            private=self.private,
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(
            self.method, self.federated_split, self.inputs, self.models, self.cohorts, self.trainer
        )

    @property
    def num_clients(self) -> int:
        return len(self.federated_split.clients)

    @property
    def base(self) -> ClassSet:
        """All classes that some client trains."""
        return self.class_set(self.federated_split.base_classes)

    def class_set(self, classes: Sequence[int]) -> ClassSet:
        """The classes with these labels."""
        return self.method.task.class_set(classes)

    def train(
        self, shared, clients, server_round, load_state, client_only=None
    ) -> Iterator[TrainResult]:
        """See :meth:`Trainer.train`."""
        return self.trainer.train(shared, clients, server_round, load_state, client_only)

    def evaluate(
        self, shared, clients, load_state, client_only=None, *, zero_shot=False, server_round=None
    ) -> Iterator[EvalResult]:
        """See :meth:`Evaluator.evaluate`; by default after the last round."""
        after = self.training.rounds if server_round is None else server_round
        return self.evaluator.evaluate(
            shared, clients, load_state, client_only, server_round=after, zero_shot=zero_shot
        )
