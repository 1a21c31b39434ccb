"""A round of a federation's clients: cohort by cohort, from and to their private state."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from fedpgp.arrays import Arrays
from fedpgp.client_models import ClientModels, LoadState, State
from fedpgp.inputs import Inputs
from fedpgp.methods import Method, Params
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator
from fedpgp.training.cohort import CohortResult, train_cohort
from fedpgp.training.cohort_size import Cohorts
from fedpgp.training.optimizers import fresh_state
from fedpgp.training.private_training import (
    ACCOUNT,
    BudgetSpent,
    PrivateTraining,
    PrivateWork,
)
from fedpgp.training.settings import TrainingSettings

OPTIMIZER = "optimizer/"
"""Prefix of the optimizer's tensors in a client's private state."""


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


class Trainer:
    """Trains clients for a round.

    Args:
        method: gives losses and gradients.
        federated_split: the clients and their images.
        inputs: of the method.
        models: the clients' tensors.
        cohorts: which clients go through together.
        settings: how a client trains in a round.
        seed: of batches and slow clients.
        keep_optimizer: a client keeps its own optimizer state from round to round.
        slow_clients: fraction of the clients that finish only some of their local epochs.
        private: what takes the place of batches and gradients with ``privacy=image``.
    """

    def __init__(
        self,
        method: Method,
        federated_split: FederatedSplit,
        inputs: Inputs,
        models: ClientModels,
        cohorts: Cohorts,
        settings: TrainingSettings,
        seed: int,
        keep_optimizer: bool,
        slow_clients: float,
        private: PrivateTraining | None = None,
    ):
        self.method, self.federated_split, self.inputs = method, federated_split, inputs
        self.models, self.cohorts, self.settings, self.seed = models, cohorts, settings, seed
        self.keep_optimizer, self.slow_clients = keep_optimizer, slow_clients
        self.private = private

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
                With ``privacy=image`` the client's account is among them
                (:data:`fedpgp.training.private_training.ACCOUNT`).
            client_only: what the server sent to one client alone
                (:meth:`fedpgp.server_update.ServerUpdate.download_for`); None: as before round 1.
        """
        task = self.method.task
        epochs = {client: self._epochs(client, server_round) for client in clients}
        work: dict[int, PrivateWork] = {}
        if self.private is not None:
            for client in clients:
                try:
                    account = (load_state(client) or {}).get(ACCOUNT)
                    work[client] = self.private.work(client, server_round, epochs[client], account)
                except BudgetSpent as spent:
                    yield TrainResult(client, None, {}, 0, error=str(spent))
            clients = list(work)
        for cohort in self.cohorts.of(clients, server_round, gradients=True, epochs=epochs):
            settings = replace(self.settings, epochs=epochs[cohort[0]])
            about = (shared, cohort, server_round, load_state, client_only, settings)
            if self.private is None:
                result = self._train_cohort(*about)
            else:
                with self.private.at_work(self.method, [work[c] for c in cohort]) as plans:
                    result = self._train_cohort(*about, plans=plans)
            for k, client in enumerate(cohort):
                state = {name: result.params[name][k].cpu() for name in self.models.personal_names}
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
                if client in work:
                    metrics |= work[client].figures()
                    state[ACCOUNT] = work[client].account
                yield TrainResult(
                    client,
                    update,
                    state,
                    len(self.federated_split.clients[client].train_at(server_round)),
                    metrics,
                    error,
                )

    def adapt(
        self,
        shared: Arrays,
        cohort: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None,
        epochs: int,
        server_round: int,
    ) -> Params:
        """Return the tensors of clients that never train, after so many epochs on the images that
        they have in a round. Batches and learning rate are those of the last round."""
        settings = replace(self.settings, epochs=epochs)
        last = self.settings.rounds
        return self._train_cohort(
            shared, cohort, last, load_state, client_only, settings, images_of=server_round
        ).params

    def _epochs(self, client: int, server_round: int) -> int:
        """Local epochs of a client in a round: fewer than asked for, drawn anew each round, for a
        slow one (FedProx's stragglers, Li et al. 2020)."""
        if not self.slow_clients or client not in self._slow or self.settings.epochs < 2:
            return self.settings.epochs
        return int(
            generator(self.seed, "slow epochs", client, server_round).integers(
                1, self.settings.epochs
            )
        )

    @cached_property
    def _slow(self) -> set[int]:
        many = round(self.slow_clients * len(self.federated_split.clients))
        return set(
            generator(self.seed, "slow clients")
            .choice(len(self.federated_split.clients), size=many, replace=False)
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
        images_of: int | None = None,
        plans: Sequence[list[np.ndarray]] | None = None,
    ) -> CohortResult:
        """Train a cohort on the images of a round (``images_of``; None: of ``server_round``)."""
        of = server_round if images_of is None else images_of
        client_splits = [self.federated_split.clients[client] for client in cohort]
        stored = [load_state(client) for client in cohort]
        states = [
            s if s is not None else self.models.initial_state(c)
            for s, c in zip(stored, cohort, strict=True)
        ]
        params = self.models.params(shared, cohort, states, client_only, server_round=of)
        classes = client_splits[0].classes_at(of)
        return train_cohort(
            self.method,
            params,
            self.inputs.training_images(),
            self.inputs.labels("train", classes),
            [client_split.train_at(of) for client_split in client_splits],
            self.method.task.class_set(classes),
            settings,
            global_params={name: params[name] for name in shared},
            seed=self.seed,
            clients=cohort,
            server_round=server_round,
            optimizer_state=self._stored_optimizer(params, states) if self.keep_optimizer else None,
            plans=plans,
        )

    def _stored_optimizer(self, params: Params, states: Sequence[State]) -> dict[str, Tensor]:
        """The cohort's optimizer state; zeros for a client that has none yet."""
        state = fresh_state(
            self.settings.make_optimizer(),
            {name: params[name] for name in self.method.trainable(params)},
        )
        for k, stored in enumerate(states):
            for name, tensor in state.items():
                found = stored.get(OPTIMIZER + name)
                if found is None and name.startswith("step/"):  # older: one count for all tensors
                    found = stored.get(OPTIMIZER + "step")
                if found is not None:
                    tensor[k] = found.to(tensor)
        return state
