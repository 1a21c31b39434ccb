"""The facade between the science and whatever moves messages: a split data set, a
frozen model and a method.

Server and clients build the same federation from the same configuration. Nothing heavy happens
before it is needed: a server that only averages never opens an image. No Flower here: prompts come
and go as numpy arrays and plain dictionaries.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from fedpgp.data import Dataset
from fedpgp.data.joint import augmented
from fedpgp.data.lookup import (
    AugmentedViews,
    DecodedImages,
    LiveFeatures,
    MappedFeatures,
    PartialFeatures,
    SubsetLookup,
)
from fedpgp.errors import FedPGPError, unknown
from fedpgp.evaluation import accuracy, calibration_error
from fedpgp.methods import Batch, Classifier, Images, Method, Params, RoundContext, cosine_logits
from fedpgp.protocols import EvalSet, FederatedSplit
from fedpgp.seeding import generator
from fedpgp.task import ClassSet
from fedpgp.training import CohortResult, TrainingSettings, gather, train_cohort
from fedpgp.training.optimizers import fresh_state

log = logging.getLogger(__name__)

State = dict[str, Tensor]
LoadState = Callable[[int], State | None]
Progress = Callable[[int, int, str], None]
"""Is told that so many of so many are done, and of what:
``(1200, 4800, "encoding test images")``."""
Arrays = Mapping[str, np.ndarray]
OPTIMIZER = "optimizer/"  # prefix of the optimizer's tensors in a client's private state

PERSONAL_STARTS = ("shared", "per_client")
"""Values of ``method.personal_start``."""

WEIGHTINGS = ("images", "equal")
"""Values of ``method.weighting``."""

MEMORY_FRACTION = 0.1
"""Part of a machine's memory that one cohort's activations may take (several workers share it)."""

EVAL_CHUNK = 512
"""Test images that are evaluated in one chunk."""

SAMPLE_SIDE = 256
"""Longest side of a sample image in pixels: a report shows it small, and a photograph's
megabytes do not travel."""


class NeedsImages(FedPGPError):
    """A client's model is made from its own training images, and this federation has none."""


class FeatureSource(Protocol):
    """Where features come from: unit norm, one row an image of the train or the test split, or of
    an augmented view; or some of the rows, all that will be asked for."""

    def __call__(self, split: str, view: int | None = None) -> np.ndarray | PartialFeatures: ...


@dataclass
class TrainResult:
    """One client's round. ``update`` is None and ``error`` says why when the client must be
    left out of the average."""

    client: int
    update: dict[str, np.ndarray] | None
    state: State
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass
class EvalResult:
    """One client's figures in percent, flat: ``"<model>.<figure>"``; what the
    protocol lacks is absent."""

    client: int
    num_examples: int
    metrics: dict[str, float]


class Federation:
    """Clients that own images, one frozen model, one method.

    Args:
        method: with its task (model, classes, precision).
        dataset: what is split.
        federated_split: which client has which images.
        features: image features of the train and the test split.
        patches, mirrored, features_raw: patch features, features of the mirrored images, and
            features that are not of unit norm, likewise, for methods that read them.
        training: how a client trains in a round.
        seed: of everything random.
        cohort_size: clients trained in one tensor program; None takes what memory allows.
        keep_optimizer: a client keeps its own optimizer state from round to round.
        personal_start: ``shared``: the private tensors of all clients start alike, as in the public
            code of every method here; ``per_client``: each client draws its own.
        weighting: ``images`` or ``equal``: how the server weighs clients; None: as the method does.
        slow_clients: fraction of the clients that finish only some of their local epochs.
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
    ):
        self._method, self.dataset, self.federated_split = method, dataset, federated_split
        self._sources = {
            "features": features,
            "patches": patches,
            "mirrored": mirrored,
            "features_raw": features_raw,
        }
        self.training, self.seed, self.cohort_size = training, seed, cohort_size
        self.keep_optimizer, self.slow_clients = keep_optimizer, slow_clients
        if personal_start not in PERSONAL_STARTS:
            raise FedPGPError(
                unknown("value of method.personal_start", personal_start, PERSONAL_STARTS)
            )
        if weighting not in (None, *WEIGHTINGS):
            raise FedPGPError(unknown("value of method.weighting", weighting, WEIGHTINGS))
        self.personal_start, self.weighting = personal_start, weighting
        self.progress: Progress = lambda done, total, what: None
        self._images: dict[
            tuple[str, str, int | None], Tensor | MappedFeatures | SubsetLookup | DecodedImages
        ] = {}
        self._labels: dict[tuple, Tensor] = {}

    @cached_property
    def method(self) -> Method:
        return self._method if isinstance(self._method, Method) else self._method()

    @property
    def equal_weights(self) -> bool:
        """Whether the server averages clients alike, not by their number of images."""
        return self.method.equal_weights if self.weighting is None else self.weighting == "equal"

    @property
    def num_clients(self) -> int:
        return len(self.federated_split.clients)

    @cached_property
    def base(self) -> ClassSet:
        """All classes that some client trains."""
        return self.class_set(self.federated_split.base_classes)

    def class_set(self, classes: Sequence[int]) -> ClassSet:
        """The classes with these labels."""
        return self.method.task.class_set(classes)

    # The tensors. ---------------------------------------------------------------------------------

    def initial_shared(self) -> dict[str, np.ndarray]:
        """The global tensors before round 1; private ones are tried too, so that
        impossible settings show here."""
        self.initial_state(0)
        return _arrays(
            self.method.init_shared(generator(self.seed, "shared")), self.method.task.dtype
        )

    def initial_state(self, client: int) -> State:
        """A client's private tensors before its first round."""
        if self.personal_start == "per_client":
            rng = generator(self.seed, "personal", client)
        else:
            rng = generator(self.seed, "shared" if self.method.starts_as_shared else "personal")
        return self.method.init_personal(rng)

    def images(self, split: str) -> Images:
        """Return the method's inputs of a split (train or test); patches and pixels are
        looked up when indexed."""
        return Images(**{what: self._read(split, what) for what in self._inputs(split)})

    def _inputs(self, split: str) -> tuple[str, ...]:
        method = self.method
        return method.inputs + (method.training_inputs if split == "train" else ())

    def encode(self) -> None:
        """Computes, or finds in the cache, all image features that training and
        evaluation will ask for."""
        self.features("test")
        self.images("test")
        if self.method.learns:
            for what in self._inputs("train") if self.training.views == 1 else self.method.inputs:
                self._read("train", what)
            for view in range(self.training.views or 0) if self.training.views != 1 else ():
                for what in self._inputs("train"):
                    self._view(what, view)

    def training_images(self) -> Images:
        """What the method trains on: the plain images, or all their augmented views
        one behind the other."""
        if self.training.views == 1:
            return self.images("train")
        size = len(self.dataset.train)
        return Images(
            **{
                what: AugmentedViews(partial(self._view, what), size)
                for what in self._inputs("train")
            }
        )

    def _view(
        self, what: str, view: int
    ) -> Tensor | MappedFeatures | SubsetLookup | DecodedImages | LiveFeatures:
        """One augmented view of the training split. A view that is seen once is encoded as
        it is read, not kept."""
        if self.training.views is not None and what != "pixels":
            return self._read("train", what, view)
        task = self.method.task
        split = augmented(self.dataset.train, view, task.clip.image_size)
        decoded = DecodedImages(split, task.clip.preprocess, task.device, task.dtype, keep=0)
        if what == "pixels":
            return decoded
        return LiveFeatures(decoded, partial(task.clip.features_of, what), task.dtype)

    def features(self, split: str) -> Tensor:
        """Unit-norm image features of ``train`` or ``test`` on the task's device, in its
        precision."""
        return self._read(split, "features")

    def _read(
        self, split: str, what: str, view: int | None = None
    ) -> Tensor | MappedFeatures | SubsetLookup | DecodedImages:
        if (split, what, view) not in self._images:
            task, which = self.method.task, (split,) if view is None else (split, view)
            if what == "pixels":
                images = DecodedImages(
                    getattr(self.dataset, split), task.clip.preprocess, task.device, task.dtype
                )
            else:
                found = self._sources[what](*which)
                array = found.values if isinstance(found, PartialFeatures) else found
                if what == "patches":
                    images = MappedFeatures(array, task.device, task.dtype)
                else:  # a copy: torch must not write into, nor hold open, the memory-mapped cache
                    images = torch.from_numpy(np.array(array)).to(task.device, task.dtype)
                if isinstance(found, PartialFeatures):
                    images = SubsetLookup(images, found.indices, found.size, task.device)
            self._images[split, what, view] = images
        return self._images[split, what, view]

    def labels(self, split: str, classes: Sequence[int]) -> Tensor:
        """Columns of ``classes`` for every image of a split, -1 for images of other classes."""
        key = (split, tuple(classes))
        if key not in self._labels:
            column = np.full(len(self.dataset.class_names), -1, dtype=np.int64)
            column[list(classes)] = np.arange(len(classes))
            labels = column[getattr(self.dataset, split).labels]
            self._labels[key] = torch.from_numpy(labels).to(self.method.task.device)
        return self._labels[key]

    def _params(
        self,
        shared: Arrays,
        clients: Sequence[int],
        states: Sequence[State],
        client_only: Mapping[int, Arrays] | None,
        training: bool = True,
    ) -> Params:
        """Return all tensors of these clients: shared, client-only, personal, and what
        the method precomputes."""
        task, method = self.method.task, self.method

        def tensor(array: np.ndarray | Tensor) -> Tensor:
            return torch.as_tensor(array).to(task.device, task.dtype)

        params = {
            name: tensor(array).expand(len(clients), *np.shape(array))
            for name, array in shared.items()
        }
        server_state = {} if client_only else self.initial_server_state()
        client_only = client_only or {
            client: self.download_for(client, server_state) for client in clients if server_state
        }
        for name in client_only.get(clients[0], ()):
            params[name] = torch.stack([tensor(client_only[client][name]) for client in clients])
        for name in self._personal_names:
            params[name] = torch.stack([tensor(state[name]) for state in states])
        if type(method).precompute is not Method.precompute and (
            training or method.precomputes_for_evaluation
        ):
            rows = [self.federated_split.clients[client].train for client in clients]
            classes = self.federated_split.clients[clients[0]].classes

            def load_batch(images: bool = True) -> Batch:
                if self.dataset.train is None:
                    raise NeedsImages(
                        f"method {method.name} needs the client's own training images, and here "
                        "are none"
                    )
                read = self.images("train") if images else Images()
                return gather(read, self.labels("train", classes), rows, task.dtype)

            with torch.no_grad():
                params |= method.precompute(params, load_batch, self.class_set(classes))
        if extra := set(params) - set(shared) - set(self._personal_names) - set(method.buffers):
            raise FedPGPError(
                f"method {method.name}: {sorted(extra)} are not trainable, so they belong into "
                "`buffers`"
            )
        return params

    def personal_classifier(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        class_sets: Sequence[ClassSet],
        client_only: Mapping[int, Arrays] | None = None,
    ) -> list[Classifier]:
        """Return the classifiers of these clients' personal models, (K, ...), for each set of
        classes."""
        states = [load_state(client) or self.initial_state(client) for client in clients]
        params = self._params(shared, clients, states, client_only, training=False)
        return [self.method.personal_classifier(params, classes) for classes in class_sets]

    def global_classifier(self, shared: Arrays, classes: ClassSet) -> Classifier | None:
        """Return the global model's classifier, with a client axis of one; None
        where the method has none."""
        task = self.method.task
        params = {
            n: torch.as_tensor(a).to(task.device, task.dtype).unsqueeze(0)
            for n, a in shared.items()
        }
        return self.method.global_classifier(params, classes)

    @cached_property
    def _personal_names(self) -> tuple[str, ...]:
        return tuple(self.initial_state(0))

    def _cohorts(
        self, clients: Sequence[int], gradients: bool, epochs: Mapping[int, int] | None = None
    ) -> Iterator[list[int]]:
        """Clients that go through in one tensor program: of the same classes, and alike in whether
        and how long they train."""
        client_splits = self.federated_split.clients
        alike: dict[tuple, list[int]] = {}
        for client in sorted(
            clients, key=lambda c: (-len(client_splits[c].train), c)
        ):  # equal lengths finish together
            key = (
                client_splits[client].classes,
                client_splits[client].trains,
                epochs[client] if epochs else None,
            )
            alike.setdefault(key, []).append(client)
        for (classes, *_), members in alike.items():
            lists = (
                {classes}
                if gradients
                else {e.classes for c in members for e in client_splits[c].eval_sets.values()}
            )
            size = self.cohort_size or min(
                self._affordable(self.class_set(ids), gradients) for ids in lists
            )
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def _affordable(self, classes: ClassSet, gradients: bool) -> int:
        """Clients whose activations fit into memory, at least 1; where a single one does not fit,
        the text tower keeps less and computes more.

        From the memory the machine has, not from what is free just now: float32 results depend on
        the packing in their last digits, and the same run must give the same numbers twice.
        """
        task = self.method.task
        if task.device.type == "cuda":
            memory = torch.cuda.get_device_properties(task.device).total_memory
        else:
            memory = psutil.virtual_memory().total
        client = self._activations(classes, gradients)
        if gradients and client > MEMORY_FRACTION * memory and not task.checkpointing:
            log.info(
                "one client's activations (%.1f GB) do not fit: gradient checkpointing",
                client / 1e9,
            )
            task.checkpointing = True
            client = self._activations(classes, gradients)
        return max(1, int(memory * MEMORY_FRACTION / client))

    def _activations(self, classes: ClassSet, gradients: bool) -> float:
        """Bytes that one client's step takes in the towers at its highest."""
        task = self.method.task
        blocks = task.clip.text_blocks
        kept = (
            12 * blocks
        )  # widths a token that autograd keeps; measured: 10 a block, and what is at work
        if not gradients:
            kept = 24  # one block's peak
        elif task.checkpointing:
            kept = blocks + 24
        attention = 4 * (
            blocks if gradients and not task.checkpointing else 1
        )  # the part in which padding counts
        encoder = classes.encoder(task.n_ctx)
        tokens = encoder.tokens * kept + encoder.padding * attention
        values = self.method.contexts(gradients) * tokens * task.clip.width
        if gradients:
            values += 12 * self.method.image_values(self.training.batch_size)
        return values * torch.finfo(task.dtype).bits / 8

    # Training. ------------------------------------------------------------------------------------

    def train(
        self,
        shared: Arrays,
        clients: Sequence[int],
        server_round: int,
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None = None,
    ) -> Iterator[TrainResult]:
        """Train clients for one round and yield each as soon as its cohort is done.

        Args:
            shared: the global tensors.
            clients: logical ids.
            server_round: of the run, from 1.
            load_state: a client's newest private tensors; None for a client that never trained.
            client_only: what the server sent to one client alone (:meth:`download_for`);
                None: as before round 1.
        """
        task = self.method.task
        epochs = {client: self._epochs(client, server_round) for client in clients}
        for cohort in self._cohorts(clients, gradients=True, epochs=epochs):
            settings = replace(self.training, epochs=epochs[cohort[0]])
            result = self._train_cohort(
                shared, cohort, server_round, load_state, client_only, settings
            )
            for k, client in enumerate(cohort):
                state = {name: result.params[name][k].cpu() for name in self._personal_names}
                if self.keep_optimizer:
                    state |= {
                        OPTIMIZER + name: tensor[k].cpu()
                        for name, tensor in result.optimizer_state.items()
                    }
                error = result.failure[k]
                update = (
                    None
                    if error
                    else {
                        name: result.params[name][k].cpu().to(task.dtype).numpy() for name in shared
                    }
                )
                metrics = {"loss": float(result.loss[k]), "steps": float(result.steps[k])}
                metrics["epochs"] = float(settings.epochs)
                yield TrainResult(
                    client,
                    update,
                    state,
                    len(self.federated_split.clients[client].train),
                    metrics,
                    error,
                )

    def _epochs(self, client: int, server_round: int) -> int:
        """Local epochs of a client in a round: fewer than asked for, drawn anew each round, for a
        slow one (FedProx's stragglers, Li et al. 2020)."""
        if not self.slow_clients or client not in self._slow or self.training.epochs < 2:
            return self.training.epochs
        return int(
            generator(self.seed, "slow epochs", client, server_round).integers(
                1, self.training.epochs
            )
        )

    @cached_property
    def _slow(self) -> set[int]:
        many = round(self.slow_clients * self.num_clients)
        return set(
            generator(self.seed, "slow clients")
            .choice(self.num_clients, size=many, replace=False)
            .tolist()
        )

    def _train_cohort(
        self,
        shared: Arrays,
        cohort: Sequence[int],
        server_round: int,
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None,
        settings: TrainingSettings,
    ) -> CohortResult:
        stored = [load_state(client) for client in cohort]
        states = [
            s if s is not None else self.initial_state(c)
            for s, c in zip(stored, cohort, strict=True)
        ]
        params = self._params(shared, cohort, states, client_only)
        classes = self.federated_split.clients[cohort[0]].classes
        return train_cohort(
            self.method,
            params,
            self.training_images(),
            self.labels("train", classes),
            [self.federated_split.clients[client].train for client in cohort],
            self.class_set(classes),
            settings,
            global_params={name: params[name] for name in shared},
            seed=self.seed,
            clients=cohort,
            server_round=server_round,
            optimizer_state=self._stored_optimizer(params, states) if self.keep_optimizer else None,
        )

    def _stored_optimizer(self, params: Params, states: Sequence[State]) -> dict[str, Tensor]:
        """The cohort's optimizer state; zeros for a client that has none yet."""
        state = fresh_state(
            self.training.make_optimizer(),
            {name: params[name] for name in self.method.trainable(params)},
        )
        for k, stored in enumerate(states):
            for name, tensor in state.items():
                if OPTIMIZER + name in stored:
                    tensor[k] = stored[OPTIMIZER + name].to(tensor)
        return state

    # The server's part. ---------------------------------------------------------------------------

    def initial_server_state(self) -> dict[str, np.ndarray]:
        """Return the server state before round 1."""
        return _arrays(self.method.init_server_state(self.num_clients), self.method.task.dtype)

    def download_for(self, client: int, server_state: Arrays) -> dict[str, np.ndarray]:
        """Return what the server sends to this client alone."""
        return _arrays(
            self.method.download_for(client, _tensors(server_state)), self.method.task.dtype
        )

    def update_server(
        self,
        averaged: Arrays,
        *,
        server_round: int,
        num_rounds: int,
        global_params: Arrays,
        updates: Mapping[int, Arrays],
        weights: Mapping[int, float],
        server_state: Arrays,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the next shared tensors and the next server state.

        Args:
            averaged: what the strategy made of the updates.
            server_round, num_rounds: this round, and how many the run has.
            global_params: the shared tensors as the server sent them.
            updates, weights: of each client whose update counts.
            server_state: before this round.
        """
        clients = sorted(updates)
        weight = torch.tensor([weights[client] for client in clients], dtype=torch.float64)
        stacked = {
            n: torch.stack([torch.from_numpy(np.array(updates[c][n])) for c in clients])
            for n in global_params
        }
        shared, server_state = self.method.update_server(
            _tensors(averaged),
            RoundContext(
                server_round=server_round,
                num_rounds=num_rounds,
                clients=clients,
                num_clients=self.num_clients,
                weights=(weight / weight.sum()).to(self.method.task.dtype),
                global_params=_tensors(global_params),
                updates=stacked,
                server_state=_tensors(server_state),
                lr=self.training.learning_rate(server_round),
                seed=self.seed,
            ),
        )
        return _arrays(shared, self.method.task.dtype), _arrays(
            server_state, self.method.task.dtype
        )

    # Evaluation. ----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None = None,
        *,
        zero_shot: bool = False,
    ) -> Iterator[EvalResult]:
        """Scores the global and every client's personal model (and, when asked, zero-shot CLIP) on
        that client's test images."""
        needed: dict[EvalKey, list[np.ndarray]] = {}
        for client in clients:
            for eval_set in self.federated_split.clients[client].eval_sets.values():
                needed.setdefault(eval_key(eval_set), []).append(eval_set.indices)
        common: dict[str, dict[EvalKey, Answer]] = {"zero_shot": {}, "global": {}}
        for key, lists in needed.items():
            classes, rows = self.class_set(key[1]), np.unique(np.concatenate(lists))
            if zero_shot:
                common["zero_shot"][key] = _looked_up(rows, partial(self._zero_shot, key))
            classifier = self.global_classifier(shared, classes)
            if classifier is not None:
                common["global"][key] = _looked_up(rows, partial(self._answer, key, classifier))
        common = {model: answers for model, answers in common.items() if answers}
        adapts = [
            c
            for c in clients
            if self.federated_split.adapt_epochs and not self.federated_split.clients[c].trains
        ]
        others = [c for c in clients if c not in adapts]
        for cohort in (
            *self._cohorts(others, gradients=False),
            *self._cohorts(adapts, gradients=True),
        ):
            client_splits = [self.federated_split.clients[client] for client in cohort]
            lists = list(
                dict.fromkeys(
                    eval_set.classes
                    for client_split in client_splits
                    for eval_set in client_split.eval_sets.values()
                )
            )
            classifiers = self._client_classifiers(
                shared, cohort, load_state, client_only, lists, "global" in common
            )
            for k, client in enumerate(cohort):
                figures: dict[str, float] = {}
                for name, eval_set in client_splits[k].eval_sets.items():
                    key, labels = (
                        eval_key(eval_set),
                        self.labels(eval_set.split, eval_set.classes)[eval_set.indices],
                    )
                    answers = {model: answers[key] for model, answers in common.items()}
                    answers["personal"] = answers.get("global")
                    if classifiers:
                        answers["personal"] = partial(
                            self._answer, key, _of_client(classifiers[eval_set.classes], k)
                        )
                    for model, answer in answers.items() if len(labels) else ():
                        logits = _allowed(eval_set, answer(eval_set.indices))
                        figures[f"{model}.{name}"] = accuracy(logits, labels)
                        if eval_set is client_splits[k].local_eval_set:
                            figures[f"{model}.ece"] = calibration_error(logits, labels)
                yield EvalResult(client, len(client_splits[k].test), figures)

    def _client_classifiers(
        self,
        shared: Arrays,
        cohort: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None,
        lists: Sequence[tuple[int, ...]],
        has_global: bool,
    ) -> dict[tuple[int, ...], Classifier]:
        """Return the classifiers of these clients' models for each list of classes; none where the
        global model is theirs too."""
        class_sets = [self.class_set(ids) for ids in lists]
        if self.federated_split.clients[cohort[0]].trains:
            if self.method.shares_one_model:
                return {}
        elif self.federated_split.adapt_epochs:
            settings = replace(self.training, epochs=self.federated_split.adapt_epochs)
            adapted = self._train_cohort(
                shared, cohort, self.training.rounds, load_state, client_only, settings
            ).params
            return {
                classes.ids: self.method.personal_classifier(adapted, classes)
                for classes in class_sets
            }
        elif has_global:
            return {}
        return dict(
            zip(
                lists,
                self.personal_classifier(shared, cohort, load_state, class_sets, client_only),
                strict=True,
            )
        )

    def _answer(self, key: "EvalKey", classifier: Classifier, rows: np.ndarray) -> Tensor:
        """What one of the method's models (a classifier with a client axis of one) says to
        these images: logits."""
        split, ids = key
        images, classes = self.images(split), self.class_set(ids)
        index = torch.from_numpy(rows).to(self.method.task.device)
        chunks = index.unsqueeze(0).split(EVAL_CHUNK, dim=1)
        return torch.cat(
            [self.method.logits(classifier, images[chunk], classes)[0] for chunk in chunks]
        )

    def _zero_shot(self, key: "EvalKey", rows: np.ndarray) -> Tensor:
        """CLIP's own answer, whatever the method does with its own models."""
        split, ids = key
        return cosine_logits(
            self.class_set(ids).zero_shot, self.features(split)[rows], self.method.task.logit_scale
        )

    @torch.no_grad()
    def samples(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        per_client: int,
        client_only: Mapping[int, Arrays] | None = None,
    ) -> list[dict]:
        """A few of each client's own test images with its personal model's answers,
        right and wrong ones in turn.

        Returns:
            dicts of ``client, domain, label, predicted, correct, confidence`` (0..1) and ``png``
            (bytes); none of images that are the clients' own.
        """
        samples = []
        for client in [] if self.federated_split.private_data else clients:
            client_split = self.federated_split.clients[client]
            if not len(client_split.test):
                continue
            classes = self.class_set(client_split.local_eval_set.classes)
            (classifier,) = self.personal_classifier(
                shared, [client], load_state, [classes], client_only
            )
            logits = _allowed(
                client_split.local_eval_set,
                self._answer(eval_key(client_split.local_eval_set), classifier, client_split.test),
            )
            confidence, predicted = (t.cpu().numpy() for t in logits.softmax(-1).max(-1))
            truth = self.labels("test", classes.ids)[client_split.test].cpu().numpy()
            order = generator(self.seed, "samples", client).permutation(len(client_split.test))
            right, wrong = (
                [i for i in order if (predicted[i] == truth[i]) == hit] for hit in (True, False)
            )
            chosen = [i for pair in zip(right, wrong, strict=False) for i in pair]
            chosen += [i for i in order if i not in chosen]
            for i in chosen[:per_client]:
                buffer = io.BytesIO()
                image = self.dataset.test.image(int(client_split.test[i]))
                image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
                image.save(buffer, format="PNG")
                samples.append(
                    {
                        "client": int(client),
                        "domain": client_split.domain,
                        "label": classes.names[truth[i]],
                        "predicted": classes.names[predicted[i]],
                        "correct": bool(predicted[i] == truth[i]),
                        "confidence": float(confidence[i]),
                        "png": buffer.getvalue(),
                    }
                )
        return samples

    def client_table(self) -> list[dict]:
        """A row a client: id, domain, numbers of train and test images, whether it trains, and how
        many of which class (nobody else's business where the images are the clients' own).
        """
        names = self.dataset.class_names

        def counts(labels: np.ndarray) -> dict[str, int]:
            ids, how_many = np.unique(labels, return_counts=True)
            return {names[i]: int(n) for i, n in zip(ids, how_many, strict=True)}

        return [
            {
                "id": client,
                "domain": client_split.domain,
                "train_images": len(client_split.train),
                "test_images": len(client_split.test),
                "trains": client_split.trains,
            }
            | (
                {}
                if self.federated_split.private_data
                else {
                    "train_counts": counts(self.dataset.train.labels[client_split.train]),
                    "test_counts": counts(self.dataset.test.labels[client_split.test]),
                }
            )
            for client, client_split in enumerate(self.federated_split.clients)
        ]


EvalKey = tuple[str, tuple[int, ...]]
"""Split and classes of an eval set: eval sets alike in both are scored by the same classifier."""
Answer = Callable[[np.ndarray], Tensor]
"""A model at work on such a split and classes: indices (n,) -> logits (n, C)."""


def eval_key(eval_set: EvalSet) -> EvalKey:
    """Split and classes of an eval set."""
    return eval_set.split, eval_set.classes


def _allowed(eval_set: EvalSet, logits: Tensor) -> Tensor:
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


def _tensors(arrays: Arrays) -> Params:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _arrays(tensors: Params, dtype: torch.dtype) -> dict[str, np.ndarray]:
    return {name: tensor.to(dtype).cpu().numpy() for name, tensor in tensors.items()}


def _of_client(classifier: Classifier, k: int) -> Classifier:
    """Return one client's classifier, with a client axis of one."""
    if isinstance(classifier, Tensor):
        return classifier[k : k + 1]
    return {name: tensor[k : k + 1] for name, tensor in classifier.items()}
