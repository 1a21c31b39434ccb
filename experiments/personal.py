"""A client's own classifier, from the folder of a run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from clients.state import PrivateStore
from experiments.folder import RunFolder
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.methods import Features
from fedpgp.task import Candidates
from strategies.checkpoint import latest_checkpoint


@dataclass(frozen=True)
class Personal:
    """What a client answers with.

    Attributes:
        config: of the run.
        federation: of the run; its images are not needed.
        features: class features of the client's model, with a client axis of one.
        classes: the candidates.
        round: the round of the global tensors.
        own: False where the client has no tensors of its own: its model is the global one.
    """

    config: dict
    federation: Federation
    features: Features
    classes: Candidates
    round: int
    own: bool


@torch.no_grad()
def load_personal(run: Path, client: int, state: Path | None = None, *, all_classes: bool = False) -> Personal:
    """Loads a client's model from a run's folder.

    Args:
        run: the run's folder.
        client: logical client, from 0; one that the run did not have is a new one.
        state: the ``state-dir`` of a deployed client's node; None takes the run's ``private/``.
        all_classes: candidates are all classes of the data set, not only those that were trained.

    Raises:
        FedPGPError: no run's folder, no checkpoint, a private state that is not there, or a client that never trained
            with a method that has no global model.
    """
    _, config = RunFolder.open(run)
    saved = latest_checkpoint(run / "checkpoint", print)
    if saved is None:
        raise FedPGPError(f"{run} has no checkpoint: the run saved nothing yet")
    tensors, info = saved
    federation = Federation.from_config(config)
    shared, memory = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("shared/", "memory/")
    )
    names = range(len(federation.dataset.class_names)) if all_classes else federation.deal.base_classes
    classes = federation.candidates(tuple(names))
    if client < 0:
        raise FedPGPError(f"--client {client}: clients are numbered from 0")
    committed = int(tensors["committed"][client]) if client < len(tensors["committed"]) else 0
    if committed:
        store = PrivateStore(state / info["run"] if state else run / "private", info["run"], 0)
        own = {client: federation.for_client(client, memory)} if memory else None
        (features,) = federation.personal_features(
            shared, [client], lambda wanted: store.load(wanted, committed), [classes], own
        )
    else:  # a method without personal tensors, or a client that never took part
        features = federation.global_features(shared, classes)
        if features is None:
            raise FedPGPError(
                f"client {client} never trained, and method={config['method']['name']} has no global model for it"
            )
    return Personal(config, federation, features, classes, info["round"], bool(committed))
