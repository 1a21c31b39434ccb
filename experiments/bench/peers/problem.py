"""What all sides train: images as features, batches, starting prompts. It is made once by this
project and read by the others from a folder, so that nobody encodes an image."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpgp.build import build_federation
from fedpgp.federation import Federation
from fedpgp.training.batches import batches

SETTINGS, TENSORS = "problem.json", "problem.safetensors"
PADDING = -1


@dataclass(frozen=True)
class Settings:
    """What is not a tensor.

    Attributes:
        method: ``promptfl`` or ``fedpgp``.
        model, pretrained: of ``load_clip``.
        names: of the classes, one a column.
        sentences: each class in the data set's template: the frozen guidance's texts.
        mu, tau: of the contrastive loss.
        rounds, clients: how many.
        lr, momentum, weight_decay: of SGD, whose state starts anew each round.
        workers: processes that train side by side.
        threads: of each.
    """

    method: str
    model: str
    pretrained: str | None
    names: list[str]
    sentences: list[str]
    mu: float
    tau: float
    rounds: int
    clients: int
    lr: float
    momentum: float
    weight_decay: float
    workers: int
    threads: int


@dataclass(frozen=True)
class ClientData:
    """A client's images and the order in which it sees them.

    Attributes:
        features: (n, e), unit norm.
        labels: (n,), columns of the classes.
        order: (rounds, steps, B), positions among the images; :data:`PADDING` fills a batch up.
    """

    features: Tensor
    labels: Tensor
    order: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, server_round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each step of a round, from 1."""
        for positions in self.order[server_round - 1]:
            chosen = positions[positions != PADDING]
            yield self.features[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Problem:
    """What all sides train.

    Attributes:
        settings: what is not a tensor.
        shared: the global tensors before round 1.
        personal: every client's private ones before its first round.
        clients: their data.
    """

    settings: Settings
    shared: dict[str, Tensor]
    personal: dict[str, Tensor]
    clients: list[ClientData] = field(repr=False)

    @classmethod
    def of(cls, config: Mapping, workers: int, threads: int) -> "Problem":
        """Return what a run of a configuration trains; its image features are in the cache then.

        Args:
            config: the resolved configuration.
            workers, threads: of :class:`Settings`.
        """
        federation = build_federation(config)
        federation.inputs.encode()
        training, split = federation.training, federation.federated_split
        classes = federation.class_set(split.base_classes)
        own = vars(federation.method.settings) if federation.method.settings else {}
        settings = Settings(
            method=config["method"]["name"],
            model=config["model"]["name"],
            pretrained=config["model"]["pretrained"],
            names=classes.names,
            sentences=classes.sentences,
            mu=own.get("mu", 0.0),
            tau=own.get("tau", 1.0),
            rounds=config["rounds"],
            clients=len(split.clients),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            workers=workers,
            threads=threads,
        )
        shared, dtype = federation.models.initial_shared(), federation.method.task.dtype
        personal = federation.models.initial_state(0)
        return cls(
            settings,
            {name: torch.from_numpy(array) for name, array in shared.items()},
            {name: tensor.to(dtype) for name, tensor in personal.items()},
            [_client_data(federation, client) for client in range(len(split.clients))],
        )

    def save(self, folder: Path) -> None:
        """Write everything to two files of a folder."""
        tensors = {f"shared/{name}": tensor for name, tensor in self.shared.items()}
        tensors |= {f"personal/{name}": tensor for name, tensor in self.personal.items()}
        for i, client in enumerate(self.clients):
            tensors |= {f"{name}/{i}": tensor for name, tensor in vars(client).items()}
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / TENSORS)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.settings)))

    @classmethod
    def load(cls, folder: Path) -> "Problem":
        """Read what :meth:`save` wrote."""
        settings = Settings(**json.loads((folder / SETTINGS).read_text()))
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_file(folder / TENSORS).items():
            kind, _, key = name.partition("/")
            parts.setdefault(kind, {})[key] = tensor
        names = ("features", "labels", "order")
        clients = [
            ClientData(*(parts[name][str(i)] for name in names)) for i in range(settings.clients)
        ]
        return cls(settings, parts["shared"], parts.get("personal", {}), clients)


def _client_data(federation: Federation, client: int) -> ClientData:
    client_split = federation.federated_split.clients[client]
    index = torch.from_numpy(client_split.train)
    features = federation.inputs.images("train").features[index]
    labels = federation.inputs.labels("train", client_split.classes)[index]
    size, settings = federation.training.batch_size, federation.training
    rounds = [
        [
            np.pad(positions, (0, size - len(positions)), constant_values=PADDING)
            for positions in batches(len(index), settings, federation.seed, client, server_round)
        ]
        for server_round in range(1, settings.rounds + 1)
    ]
    return ClientData(features, labels, torch.from_numpy(np.array(rounds)))
