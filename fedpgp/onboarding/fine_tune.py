"""A newcomer's own training: its private tensors, while the global ones stay as they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedpgp.client_models import ClientModels, State
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.onboarding.newcomers import Newcomer, Trained
from fedpgp.protocols.onboarding_options import OnboardingOptions
from fedpgp.seeding import generator
from fedpgp.training.cohort import train_cohort


def newcomers_models(federation: Federation, newcomers: Sequence[Newcomer]) -> ClientModels:
    """Return the models of clients in which each newcomer owns the images it may use, and no
    others."""
    clients = list(federation.federated_split.clients)
    for newcomer in newcomers:
        clients[newcomer.client] = replace(clients[newcomer.client], train=newcomer.rows, phases=())
    return ClientModels(
        method=federation.method,
        federated_split=replace(federation.federated_split, clients=clients),
        inputs=federation.inputs,
        server=federation.server,
        seed=federation.seed,
        personal_start=federation.models.personal_start,
    )


def client_only_of(federation: Federation, trained: Trained, newcomers: Sequence[Newcomer]) -> dict:
    """Return client -> what the server would send to it alone; empty for most methods."""
    if not trained.server_state:
        return {}
    return {
        newcomer.client: federation.server.download_for(newcomer.client, trained.server_state)
        for newcomer in newcomers
    }


def fine_tune(
    federation: Federation,
    trained: Trained,
    newcomers: Sequence[Newcomer],
    states: Sequence[State | None],
    options: OnboardingOptions,
) -> list[State]:
    """Train the private tensors of newcomers, each for its ``steps`` on its own images.

    Args:
        federation: its method, inputs and training; the optimizer is the run's, the learning rate
            ``options.onboard_lr``, constant.
        trained: the global tensors; they do not change.
        newcomers: they choose among the same classes.
        states: where each begins; None: as a client that never trained.

    Returns:
        the private tensors of each; where it began, for one without steps or without images.

    Raises:
        FedPGPError: a training has no finite loss.
    """
    method, training = federation.method, federation.training
    models = newcomers_models(federation, newcomers)
    begun = [
        models.initial_state(newcomer.client) if state is None else state
        for newcomer, state in zip(newcomers, states, strict=True)
    ]
    able = [k for k, newcomer in enumerate(newcomers) if newcomer.steps and len(newcomer.rows)]
    if not able:
        return begun
    chosen = [newcomers[k] for k in able]
    clients = [newcomer.client for newcomer in chosen]
    rate = training.lr if options.onboard_lr is None else options.onboard_lr
    settings = replace(training, epochs=1, schedule="constant", warmup_rounds=0, lr=rate)
    params = models.params(
        trained.shared,
        clients,
        [begun[k] for k in able],
        client_only_of(federation, trained, chosen),
        server_round=training.rounds,
    )
    classes = chosen[0].classes
    result = train_cohort(
        method,
        params,
        federation.inputs.training_images(),
        federation.inputs.labels("train", classes),
        [newcomer.rows for newcomer in chosen],
        method.task.class_set(classes),
        settings,
        global_params={name: params[name] for name in trained.shared},
        seed=federation.seed,
        clients=clients,
        server_round=training.rounds,
        plans=[plan(newcomer, settings.batch_size, federation.seed) for newcomer in chosen],
        trainable=models.personal_names,
    )
    for place, k in enumerate(able):
        if result.failure[place]:
            raise FedPGPError(
                f"newcomer {newcomers[k].client}: {result.failure[place]} of its own training; "
                f"lower protocol.onboard_lr ({rate:g} now)"
            )
        begun[k] = {
            name: result.params[name][place].detach().cpu() for name in models.personal_names
        }
    return begun


def plan(newcomer: Newcomer, batch_size: int, seed: int) -> list[np.ndarray]:
    """Return the batches of a newcomer's steps, positions among its images: one pass over them
    after the other, each in an order of its own. The first steps of more are those of fewer."""
    images, batches, epoch = len(newcomer.rows), [], 0
    while images and len(batches) < newcomer.steps:
        order = generator(seed, "newcomer batches", newcomer.client, epoch).permutation(images)
        batches += [order[i : i + batch_size] for i in range(0, images, batch_size)]
        epoch += 1
    return batches[: newcomer.steps]
