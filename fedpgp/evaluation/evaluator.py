"""Scores the models of clients on their eval sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays
from fedpgp.client_models import ClientModels, LoadState
from fedpgp.evaluation.detection import detection_figures
from fedpgp.evaluation.metrics import accuracy, answer_figures
from fedpgp.inputs import Inputs
from fedpgp.methods import Classifier, Method, cosine_logits
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit
from fedpgp.training.cohort_size import Cohorts
from fedpgp.training.trainer import Trainer

EVAL_CHUNK = 512
"""Test images that are evaluated in one chunk."""

EvalKey = tuple[str, tuple[int, ...]]
"""Split and classes of an eval set: eval sets alike in both are scored by the same classifier."""
Answer = Callable[[np.ndarray], Tensor]
"""A model at work on such a split and classes: indices (n,) -> logits (n, C)."""
Asked = tuple[EvalKey, bool]
"""An eval key, and whether the images are of other classes than the key's."""


@dataclass
class EvalResult:
    """One client's figures in percent, flat: ``"<model>.<figure>"``; what the
    protocol lacks is absent."""

    client: int
    num_examples: int
    metrics: dict[str, float]


class Evaluator:
    """Scores zero-shot CLIP, the global model and every client's personal one.

    Args:
        method: gives the logits.
        federated_split: the clients and their eval sets.
        inputs: of the method.
        models: the clients' classifiers.
        cohorts: which clients go through together.
        trainer: for clients that adapt before they are tested.
    """

    def __init__(
        self,
        method: Method,
        federated_split: FederatedSplit,
        inputs: Inputs,
        models: ClientModels,
        cohorts: Cohorts,
        trainer: Trainer,
    ):
        self.method, self.federated_split, self.inputs = method, federated_split, inputs
        self.models, self.cohorts, self.trainer = models, cohorts, trainer

    @torch.no_grad()
    def evaluate(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None = None,
        *,
        server_round: int,
        zero_shot: bool = False,
    ) -> Iterator[EvalResult]:
        """Scores the global and every client's personal model (and, when asked, zero-shot CLIP)
        after a round, on the client's eval sets that count by then."""
        client_splits = self.federated_split.clients
        eval_sets = {c: client_splits[c].eval_sets_at(server_round) for c in clients}
        for client in clients:
            if not eval_sets[client]:
                yield EvalResult(client, len(client_splits[client].test), {})
        clients = [client for client in clients if eval_sets[client]]
        needed: dict[Asked, list[np.ndarray]] = {}
        for client in clients:
            for name, eval_set in eval_sets[client].items():
                needed.setdefault((eval_key(eval_set), False), []).append(eval_set.indices)
                unknown = client_splits[client].unknown
                if unknown is not None and unknown.known == name:
                    needed.setdefault((eval_key(eval_set), True), []).append(unknown.indices)
        common: dict[str, dict[Asked, Answer]] = {"zero_shot": {}, "global": {}}
        for asked, lists in needed.items():
            key, rows = asked[0], np.unique(np.concatenate(lists))
            if zero_shot:
                common["zero_shot"][asked] = _looked_up(rows, partial(self._zero_shot, key))
            classes = self.method.task.class_set(key[1])
            classifier = self.models.global_classifier(shared, classes)
            if classifier is not None:
                common["global"][asked] = _looked_up(rows, partial(self.answer, key, classifier))
        common = {model: answers for model, answers in common.items() if answers}
        adapts = [
            c for c in clients if self.federated_split.adapt_epochs and not client_splits[c].trains
        ]
        others = [c for c in clients if c not in adapts]
        for cohort in (
            *self.cohorts.of(others, server_round, gradients=False),
            *self.cohorts.of(adapts, server_round, gradients=True),
        ):
            lists = list(
                dict.fromkeys(
                    eval_set.classes for client in cohort for eval_set in eval_sets[client].values()
                )
            )
            classifiers = self._client_classifiers(
                shared, cohort, load_state, client_only, lists, "global" in common, server_round
            )
            for k, client in enumerate(cohort):
                client_split, figures = client_splits[client], {}
                for name, eval_set in eval_sets[client].items():
                    classifier = classifiers.get(eval_set.classes)
                    own = None if classifier is None else of_client(classifier, k)
                    figures |= self._figures(client_split, name, common, own)
                yield EvalResult(client, len(client_split.test), figures)

    def _figures(
        self,
        client_split: ClientSplit,
        name: str,
        common: Mapping[str, Mapping[Asked, Answer]],
        own: Classifier | None,
    ) -> dict[str, float]:
        """Return what an eval set of a client says of each model, flat.

        Args:
            client_split: the client.
            name: of the eval set.
            common: model of all clients -> its answers.
            own: the client's own classifier; None where the global model is its own.
        """
        eval_set, unknown = client_split.eval_sets[name], client_split.unknown
        key = eval_key(eval_set)
        labels = self.inputs.labels(eval_set.split, eval_set.classes)[eval_set.indices]
        if not len(labels):
            return {}

        def answers(of_unknown: bool) -> dict[str, Answer]:
            found = {model: answers[key, of_unknown] for model, answers in common.items()}
            return {
                **found,
                "personal": found["global"] if own is None else partial(self.answer, key, own),
            }

        figures: dict[str, float] = {}
        for model, answer in answers(False).items():
            logits = allowed(eval_set, answer(eval_set.indices))
            said = {name: accuracy(logits, labels)}
            if eval_set is client_split.local_eval_set:
                said |= answer_figures(logits, labels)
            if unknown is not None and unknown.known == name:
                others = allowed(eval_set, answers(True)[model](unknown.indices))
                said |= detection_figures(logits, others)
            figures |= {f"{model}.{figure}": value for figure, value in said.items()}
        return figures

    def _client_classifiers(
        self,
        shared: Arrays,
        cohort: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None,
        lists: Sequence[tuple[int, ...]],
        has_global: bool,
        server_round: int,
    ) -> dict[tuple[int, ...], Classifier]:
        """Return the classifiers of these clients' models for each list of classes; none where the
        global model is theirs too."""
        class_sets = [self.method.task.class_set(ids) for ids in lists]
        if self.federated_split.clients[cohort[0]].trains:
            if self.method.shares_one_model:
                return {}
        elif self.federated_split.adapt_epochs:
            epochs = self.federated_split.adapt_epochs
            adapted = self.trainer.adapt(
                shared, cohort, load_state, client_only, epochs, server_round
            )
            return {
                classes.ids: self.method.personal_classifier(adapted, classes)
                for classes in class_sets
            }
        elif has_global:
            return {}
        return dict(
            zip(
                lists,
                self.models.personal_classifier(
                    shared, cohort, load_state, class_sets, client_only, server_round=server_round
                ),
                strict=True,
            )
        )

    def answer(self, key: EvalKey, classifier: Classifier, rows: np.ndarray) -> Tensor:
        """What one of the method's models (a classifier with a client axis of one) says to
        these images: logits."""
        split, ids = key
        images, classes = self.inputs.images(split), self.method.task.class_set(ids)
        index = torch.from_numpy(rows).to(self.method.task.device)
        chunks = index.unsqueeze(0).split(EVAL_CHUNK, dim=1)
        return torch.cat(
            [self.method.logits(classifier, images[chunk], classes)[0] for chunk in chunks]
        )

    def _zero_shot(self, key: EvalKey, rows: np.ndarray) -> Tensor:
        """CLIP's own answer, whatever the method does with its own models."""
        split, ids = key
        return cosine_logits(
            self.method.task.class_set(ids).zero_shot,
            self.inputs.features(split)[rows],
            self.method.task.logit_scale,
        )


def eval_key(eval_set: EvalSet) -> EvalKey:
    """Split and classes of an eval set."""
    return eval_set.split, eval_set.classes


def allowed(eval_set: EvalSet, logits: Tensor) -> Tensor:
    """Logits of an eval set; what may not be answered is at -inf."""
    if eval_set.allowed_labels is None:
        return logits
    shut = torch.tensor(
        [label not in eval_set.allowed_labels for label in eval_set.classes], device=logits.device
    )
    return logits.masked_fill(shut, float("-inf"))


def _looked_up(rows: np.ndarray, answer: Answer) -> Answer:
    """The same model for many clients: all images are answered once, the first time one is asked
    for."""
    answers: list[Tensor] = []

    def look_up(wanted: np.ndarray) -> Tensor:
        if not answers:
            answers.append(answer(rows))
        return answers[0][torch.from_numpy(np.searchsorted(rows, wanted)).to(answers[0].device)]

    return look_up


def of_client(classifier: Classifier, k: int) -> Classifier:
    """Return one client's classifier, with a client axis of one."""
    if isinstance(classifier, Tensor):
        return classifier[k : k + 1]
    return {name: tensor[k : k + 1] for name, tensor in classifier.items()}
