"""What a method reads: images, batches of them, and all images of a client.

Shapes are named at the top of :mod:`fedpgp.methods.base`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """The inputs of a method; None for those it does not need.

    Attributes:
        features: pooled, unit norm, (..., e).
        patches: tokens of the image tower projected to the joint space, unit norm, (..., P, e).
        pixels: preprocessed images, (..., 3, R, R).
        mirrored: as features, of the mirrored image.
        features_raw: as features, but as long as the image tower makes them.
    """

    features: Tensor | None = None
    patches: Tensor | None = None
    pixels: Tensor | None = None
    mirrored: Tensor | None = None
    features_raw: Tensor | None = None

    def __getitem__(self, index) -> "Images":
        """Return the images at these positions of the leading axes."""
        return Images(
            **{what: tensor[index] for what, tensor in vars(self).items() if tensor is not None}
        )


@dataclass(frozen=True)
class Batch:
    """Images of every client in the cohort: one step's, or all that the clients train on.

    Attributes:
        images: with leading axes (K, B).
        labels: columns of the class set, (K, B) int64.
        weights: (K, B); sum to one over a client's real images, zero for the padding of a shorter
            batch.
    """

    images: Images
    labels: Tensor
    weights: Tensor

    def __getitem__(self, index) -> "Batch":
        """Return the part at these positions of the leading axes."""
        return Batch(self.images[index], self.labels[index], self.weights[index])

    def seen(self, classes: int) -> Tensor:
        """Return which of so many classes each client has images of, (K, C) of zeros and ones."""
        one_hot = torch.nn.functional.one_hot(self.labels, classes).to(self.weights.dtype)
        return ((one_hot * self.weights.unsqueeze(-1)).sum(1) > 0).to(self.weights.dtype)


class LoadClientBatch(Protocol):
    """Loads all training images of each client as one batch, or only their labels and weights."""

    def __call__(self, images: bool = True) -> Batch: ...
