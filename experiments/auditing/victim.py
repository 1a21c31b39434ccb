"""A federation that is attacked: trained as often as an attack asks, and its models' scores."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.recorded_run import Recorded, recorded_run
from fedpgp.audit.membership import confidence as log_odds
from fedpgp.build import build_federation
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation, Progress
from fedpgp.methods import Classifier
from fedpgp.protocols import ClientSplit, FederatedSplit

Build = Callable[[Mapping, FederatedSplit], Federation]


class NotTried(FedPGPError):
    """An attack that has nothing to attack in this run."""


@dataclass(frozen=True)
class Victim:
    """A federation that is attacked.

    Attributes:
        config: of each run.
        split: who owns what.
        seed: of the audit.
        progress: is told how many runs are done.
        build: makes a federation of a configuration and a split.
    """

    config: Mapping
    split: FederatedSplit
    seed: int
    progress: Progress
    build: Build = build_federation

    @cached_property
    def whole(self) -> Federation:
        """All images and clients, as in the run: it scores what others learned."""
        return self.build(self.config, self.split)

    @cached_property
    def first(self) -> Recorded:
        """The run itself, once more."""
        with self.run(self.config, self.split) as (recorded, _):
            return recorded

    @cached_property
    def has_global_model(self) -> bool:
        shared = self.whole.models.initial_shared()
        found = self.whole.models.global_classifier(shared, self.whole.base) if shared else None
        return found is not None

    def classifier(self, shared: Mapping, own: ClientSplit) -> Classifier:
        return self.whole.models.global_classifier(shared, self.whole.class_set(own.classes))

    def embeddings(self, shared: Mapping, own: ClientSplit) -> Tensor:
        return self.classifier(shared, own)[0]

    def confidence(self, classifier: Classifier, own: ClientSplit, rows: np.ndarray) -> np.ndarray:
        logits = self.whole.evaluator.answer(("train", own.classes), classifier, rows)
        return self.of_logits(logits, own, rows)

    def of_logits(self, logits: Tensor, own: ClientSplit, rows: np.ndarray) -> np.ndarray:
        labels = self.whole.inputs.labels("train", own.classes)[torch.from_numpy(rows)]
        return log_odds(logits.double(), labels).cpu().numpy()

    @contextmanager
    def run(self, config: Mapping, split: FederatedSplit) -> Iterator[tuple[Recorded, Federation]]:
        """A run whose folder lasts as long as it is looked at."""
        federation = self.whole if split is self.split else self.build(config, split)
        if config["seed"] != self.config["seed"]:
            federation = self.build(config, split)
        with tempfile.TemporaryDirectory(prefix="fedpgp-audit-") as folder, torch.enable_grad():
            yield recorded_run(config, federation, Path(folder)), federation

    def scores_of(self, shared: Mapping, owned: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            self.confidence(self.classifier(shared, own), own, rows)
            for own, rows in zip(self.split.clients, owned, strict=True)
        ]

    def of_start(self, owned: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores of zero-shot CLIP, of which all runs know."""
        scores = []
        for own, rows in zip(self.split.clients, owned, strict=True):
            classes, method = self.whole.class_set(own.classes), self.whole.method
            features = self.whole.inputs.features("train")[torch.from_numpy(rows)]
            logits = method.task.logit_scale * features @ classes.zero_shot.T
            scores.append(self.of_logits(logits, own, rows))
        return scores

    @cached_property
    def public(self) -> Tensor:
        """The mean feature of each class's test images, which stand for other people's; zero-shot
        CLIP's own where there are none. (C, e), unit norm."""
        dataset, inputs = self.split.dataset, self.whole.inputs
        found = self.whole.class_set(range(len(dataset.class_names))).zero_shot.clone()
        labels, features = np.asarray(dataset.test.labels), inputs.features("test")
        for label in np.unique(labels):
            found[label] = features[torch.from_numpy(np.flatnonzero(labels == label))].mean(0)
        return torch.nn.functional.normalize(found, dim=1)

    def labels_of(self, own: ClientSplit) -> np.ndarray:
        """Columns of the client's training images of round 1."""
        labels = self.whole.inputs.labels("train", own.classes_at(1))
        return labels[torch.from_numpy(own.train_at(1))].cpu().numpy()
