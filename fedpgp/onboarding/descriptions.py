"""What is told of a client so that it is compared with others: class names, features or a
histogram."""

from collections.abc import Sequence

import numpy as np
import torch

from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation


@torch.no_grad()
def describe(
    kind: str, federation: Federation, rows: np.ndarray, labels: Sequence[int]
) -> np.ndarray:
    """Return a client's description, (n,) float64.

    Args:
        kind: ``names``: the mean of the text features of its class names, of unit norm, (e,);
            ``features``: the mean of its image features, of unit norm, (e,); ``histogram``: its
            images of each class of the data set, as fractions.
        federation: its model and images.
        rows: of its images, in the train split.
        labels: its classes.

    Raises:
        FedPGPError: there is no image that it could be made of.
    """
    dataset = federation.dataset
    if kind == "names":
        everything = federation.class_set(range(len(dataset.class_names)))
        return _unit(everything.template_features[list(labels)].mean(0).cpu().double().numpy())
    if not len(rows):
        raise FedPGPError(
            f"protocol.description={kind} is made of images, and a client has none: take names"
        )
    if kind == "histogram":
        counts = np.bincount(dataset.train.labels[rows], minlength=len(dataset.class_names))
        return counts / counts.sum()
    index = torch.from_numpy(np.asarray(rows))
    features = federation.inputs.features("train")[index.to(federation.method.task.device)]
    return _unit(features.double().mean(0).cpu().numpy())


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
