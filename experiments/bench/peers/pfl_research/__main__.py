"""Federated averaging in pfl-research: its PyTorch model, its SGD, its simulated backend. A user's
private tensors are in its store of user states on disk, the kind it has for several processes.

Started by ``torchrun`` it is one of several processes, which share the users of a round by their
numbers of images.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.data.user_state import DiskUserStateStorage
from pfl.exception import UserNotFoundError
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, StringMetricName, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics
from torch import Tensor

from experiments.bench.peers.learner import PromptLearner
from experiments.bench.peers.problem import ClientData, Problem
from experiments.bench.peers.records import write_prompts, write_round

LOSS = StringMetricName("loss")


class UserImages(Dataset):
    """A user's images, in the problem's order.

    Args:
        data: of the client.
        user_id: its number, as text.

    Attributes:
        server_round: whose batches come, from 1.
    """

    def __init__(self, data: ClientData, user_id: str):
        super().__init__(raw_data=(data.features, data.labels), user_id=user_id)
        self.server_round, self._data = 1, data

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        return self._data.batches(self.server_round)


class PromptAveraging(FederatedAveraging):
    """Federated averaging of the shared tensors; the private ones are a user's state.

    Args:
        problem: what is trained.
        states: of the users.
    """

    def __init__(self, problem: Problem, states: DiskUserStateStorage):
        super().__init__()
        self._problem, self._states = problem, states

    def train_one_user(
        self,
        initial_model_state: MappedVectorStatistics,
        model: PyTorchModel,
        user_dataset: UserImages,
        central_context: CentralContext,
    ) -> tuple[MappedVectorStatistics, Metrics]:
        learner, private = model.pytorch_model, self._problem.personal
        user_dataset.server_round = central_context.current_central_iteration + 1
        if private:
            try:
                state = self._states.load_state(user_dataset.user_id)
            except UserNotFoundError:  # its first round
                state = private
            learner.load_state_dict(state, strict=False)
        update, metrics = super().train_one_user(
            initial_model_state, model, user_dataset, central_context
        )
        if private:
            trained = learner.state_dict()
            state = {name: trained[name] for name in private}
            self._states.save_state(state, user_dataset.user_id)
        for name in private:
            update.pop(name)
        images = len(user_dataset)
        metrics[LOSS] = Weighted(images * learner.mean_loss(), images)
        return update, metrics


class RoundRecorder(TrainingProcessCallback):
    """Writes down each round as it ends.

    Args:
        folder: of the records.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        write_round(self._folder, central_iteration + 1, aggregate_metrics[LOSS].overall_value)
        return False, Metrics()


def main(folder: Path) -> None:
    """Train the problem of a folder."""
    problem = Problem.load(folder)
    settings = problem.settings
    torch.set_num_threads(settings.threads)
    first = os.environ.get("RANK", "0") == "0"  # torchrun says which process this is
    np.random.seed(0)  # alike in all processes, so that they draw the same cohort
    learner = PromptLearner(problem)
    optimizer = partial(
        torch.optim.SGD, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    model = PyTorchModel(
        learner,
        local_optimizer_create=optimizer,
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),  # takes the mean as it is
    )
    users = {str(i): data for i, data in enumerate(problem.clients)}
    dataset = FederatedDataset(
        lambda user: UserImages(users[user], user),
        MinimizeReuseUserSampler(list(users)),
        user_id_to_weight={user: len(data) for user, data in users.items()},
    )
    algorithm = PromptAveraging(problem, DiskUserStateStorage(str(folder / "states")))
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=settings.rounds,
            evaluation_frequency=settings.rounds,
            train_cohort_size=len(users),
            val_cohort_size=None,
        ),
        SimulatedBackend(dataset, dataset, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,  # all steps of a round are one pass of UserImages
            local_learning_rate=settings.lr,
            local_batch_size=None,
        ),
        callbacks=[RoundRecorder(folder)] if first else [],
    )
    if first:
        trained = learner.state_dict()
        write_prompts(folder, {name: trained[name] for name in problem.shared})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
