"""Accuracy of newcomers, for each way, budget and number of steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.evaluation.evaluator import allowed, eval_key, of_client
from fedpgp.evaluation.metrics import accuracy
from fedpgp.federation import Federation
from fedpgp.onboarding.base import Onboarding, make_onboarding
from fedpgp.onboarding.budget import make_newcomer, newcomers_of
from fedpgp.onboarding.fine_tune import client_only_of, newcomers_models
from fedpgp.onboarding.newcomers import Newcomer, Onboarded, Trained
from fedpgp.protocols import EvalSet
from fedpgp.protocols.onboarding_options import OnboardingOptions

UNSEEN = "unseen"
"""The eval set that newcomers are tested on."""


@dataclass(frozen=True)
class Measured:
    """Newcomers' accuracy with one way, budget and number of steps.

    Attributes:
        way: its name.
        budget: images of each class; None: all.
        steps: of their own training.
        accuracies: newcomer -> percent of its own test images.
        bytes_up, bytes_down: of all newcomers together, beside the global prompt.
    """

    way: str
    budget: int | None
    steps: int
    accuracies: dict[int, float]
    bytes_up: int
    bytes_down: int

    @property
    def unseen(self) -> float:
        """The mean over newcomers."""
        return sum(self.accuracies.values()) / len(self.accuracies)


def measure(
    federation: Federation,
    trained: Trained,
    options: OnboardingOptions,
    going_on: Callable[[str], None] = lambda what: None,
) -> Iterator[Measured]:
    """Onboard all clients that never train, and yield their accuracy: the global prompt first, then
    each way, budget and number of steps that makes a difference to it.

    Args:
        federation: with these clients in its split.
        trained: what came of it; not changed.
        options: ways, budgets, steps, and what ways are told.
        going_on: is told what is next; may raise to stop.

    Raises:
        FedPGPError: a way that cannot work with these options or this method.
    """
    clients = newcomers_of(federation)
    for name in dict.fromkeys(["global", *options.ways]):
        way = make_onboarding(name, options, federation, trained)
        for budget, steps in cells(way, options):
            going_on(f"onboarding: {name}, {_images(budget)}, {steps} steps")
            newcomers = [make_newcomer(federation, client, budget, steps) for client in clients]
            models = way.onboard(newcomers)
            yield Measured(
                name,
                budget,
                steps,
                dict(zip(clients, accuracies(way, newcomers, models), strict=True)),
                sum(model.bytes_up for model in models),
                sum(model.bytes_down for model in models),
            )


def cells(way: Onboarding, options: OnboardingOptions) -> list[tuple[int | None, int]]:
    """Return the pairs of budget and steps that make a difference to a way: without images there
    are no steps, but for a way that trains nothing by itself."""
    alone = way.steps_without_images
    budgets = options.budgets if way.uses_images else [0]
    steps = options.steps_of if way.fine_tunes or alone else [0]
    pairs = [
        (budget, 0 if budget == 0 and not alone else count) for budget in budgets for count in steps
    ]
    return list(dict.fromkeys(pairs))


@torch.no_grad()
def accuracies(
    way: Onboarding, newcomers: Sequence[Newcomer], models: Sequence[Onboarded]
) -> list[float]:
    """Return each newcomer's accuracy on its own test images, in percent."""
    federation = way.federation
    found = []
    for newcomer, model in zip(newcomers, models, strict=True):
        split = federation.federated_split.clients[newcomer.client]
        eval_set = split.eval_sets[UNSEEN]
        labels = federation.inputs.labels(eval_set.split, eval_set.classes)[eval_set.indices]
        found.append(accuracy(allowed(eval_set, logits(way, newcomer, model, eval_set)), labels))
    return found


@torch.no_grad()
def logits(way: Onboarding, newcomer: Newcomer, model: Onboarded, eval_set: EvalSet) -> Tensor:
    """Return what a newcomer's model says of the images of an eval set, (n, C).

    Args:
        way: that made the model.
        newcomer: whose model it is.
        model: what :meth:`fedpgp.onboarding.base.Onboarding.onboard` gave.
        eval_set: images, and the classes to choose among.
    """
    federation, trained = way.federation, way.trained
    classes = federation.class_set(eval_set.classes)
    classifier = None
    if model.state is None:
        classifier = federation.models.global_classifier(trained.shared, classes)
    if classifier is None:  # a method without a global model: as a client that never trained
        (classifier,) = newcomers_models(federation, [newcomer]).personal_classifier(
            trained.shared,
            [newcomer.client],
            lambda client: model.state,
            [classes],
            client_only_of(federation, trained, [newcomer]),
            server_round=federation.training.rounds,
        )
    said = federation.evaluator.answer(
        eval_key(eval_set), of_client(classifier, 0), eval_set.indices
    )
    if model.adjust is None:
        return said
    index = torch.from_numpy(eval_set.indices).to(said.device)
    return model.adjust(said, federation.inputs.features(eval_set.split)[index])


def _images(budget: int | None) -> str:
    return "all images" if budget is None else f"{budget} images a class"
