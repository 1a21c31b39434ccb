"""Which images a client sees in which step, and one batch of several clients' images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedpgp.methods.base import Batch, Images
from fedpgp.seeding import generator
from fedpgp.training.settings import TrainingSettings

MOST_EPOCHS = 2**20
"""More than anybody has in a round: what the numbers of new views are made of."""


def batches(
    images: int, settings: TrainingSettings, seed: int, client: int, server_round: int
) -> list[np.ndarray]:
    """A client's batches in one round: positions among its images, each (<= batch_size,).

    The order of epoch e comes from (seed, client, server_round, e) alone.
    """
    chunks = []
    for epoch in range(settings.epochs):
        order = np.arange(images)
        if settings.shuffle:
            order = generator(seed, "batches", client, server_round, epoch).permutation(images)
        parts = [order[i : i + settings.batch_size] for i in range(0, images, settings.batch_size)]
        if settings.drop_last and len(parts) > 1 and len(parts[-1]) < settings.batch_size:
            parts.pop()
        chunks += parts
    return chunks


def steps_of_epoch(images: int, settings: TrainingSettings) -> int:
    """Return how many batches so many images have in an epoch."""
    whole, rest = divmod(images, settings.batch_size)
    return max(1, whole) if settings.drop_last else whole + (rest > 0)


def drawn_views(
    images: int, settings: TrainingSettings, seed: int, client: int, server_round: int
) -> np.ndarray:
    """Which view of each of a client's images is seen in each epoch of a round,
    (epochs, images) from 0."""
    if settings.views is None:
        epochs = server_round * MOST_EPOCHS + np.arange(
            settings.epochs
        )  # a slow client has fewer in some rounds
        return np.repeat(epochs[:, None], images, axis=1)
    rng = generator(seed, "views", client, server_round)
    return rng.integers(settings.views, size=(settings.epochs, images))


def gather(images: Images, labels: Tensor, rows: Sequence[np.ndarray], dtype: torch.dtype) -> Batch:
    """The images of these rows, one list of rows a client. A shorter list is padded with its own
    images again, at weight zero. Row ``v * N + i`` is view v of image i of N."""
    counts = [len(members) for members in rows]
    size = max([1, *counts])
    counts = torch.tensor(counts, device=labels.device).unsqueeze(1)
    index = torch.as_tensor(
        np.stack([np.resize(members, size) for members in rows]), device=labels.device
    )
    inside = torch.arange(size, device=labels.device) < counts
    return Batch(images[index], labels[index % len(labels)], inside.to(dtype) / counts.clamp(min=1))
