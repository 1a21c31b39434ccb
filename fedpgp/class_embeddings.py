"""Class embeddings of shared tensors: where a client's prompts put each class in CLIP's joint
space. A server that has the model can compare updates there (``strategy=text_filter``)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from fedpgp.arrays import Arrays
from fedpgp.client_models import ClientModels
from fedpgp.errors import MethodError
from fedpgp.task import ClassSet

ClassEmbeddings = Callable[[Arrays], np.ndarray]
"""Shared tensors of one client -> (V, e), unit norm, float64: one row a class, and prompt where a
method has several."""


def class_embeddings_of(models: ClientModels, classes: ClassSet) -> ClassEmbeddings:
    """Return what turns shared tensors into class embeddings.

    A plain function, so that a strategy that holds it can be copied without the model.

    Args:
        models: of the server's federation.
        classes: those that are compared.
    """

    def class_embeddings(shared: Arrays) -> np.ndarray:
        with torch.no_grad():
            classifier = models.global_classifier(shared, classes)
        texts = classifier.get("texts") if isinstance(classifier, Mapping) else classifier
        if texts is None:
            raise MethodError(
                f"method {models.method.name}: its global classifier has no class embeddings "
                '("texts"); say why in its no_class_embeddings'
            )
        rows = texts.double().reshape(-1, texts.shape[-1])
        return torch.nn.functional.normalize(rows, dim=-1).cpu().numpy()

    return class_embeddings
