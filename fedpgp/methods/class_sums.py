"""Sums of image features by class: what class means are made of."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fedpgp.methods.base import Batch


def class_sums(batch: Batch, ids: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the features of each client's images of each class, and how many.

    Args:
        batch: with features; padding does not count.
        ids: labels in the data set of the columns that ``batch.labels`` are.
        classes: of the data set.

    Returns:
        (K, classes, e) and (K, classes, 1), in the features' precision.
    """
    features = batch.images.features
    labels = batch.labels.new_tensor(ids)[batch.labels]
    one_hot = F.one_hot(labels, classes).to(features.dtype) * batch.weights.sign().unsqueeze(-1)
    return one_hot.mT @ features, one_hot.sum(1).unsqueeze(-1)
