"""What one update of a prompt says of the client's images: their classes, and their features.

K = 1 client; C classes; e embedding; d numbers of all shared tensors together.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, one_hot

STEPS, RATE = 200, 0.01
"""Of Adam, in the search for features."""

Classifier = Callable[[Tensor], Tensor]
"""Shared numbers (d,) -> class embeddings of unit norm (C, e), differentiable."""


def class_scores(before: Tensor, after: Tensor, public: Tensor, scale: float) -> Tensor:
    """Return how much surer of each class a client's model became, on public images of the class.

    Training on images of a class draws its embedding to them, and pushes away those of classes that
    the client lacks.

    Args:
        before, after: class embeddings of the tensors that a client was sent, and that it sent,
            (C, e).
        public: mean feature of other people's images of each class, (C, e).
        scale: 1 / temperature.

    Returns:
        (C,): change of the log probability.
    """

    def log_probability(embeddings: Tensor) -> Tensor:
        return torch.log_softmax(scale * public @ embeddings.T, dim=1).diagonal()

    return log_probability(after) - log_probability(before)


def invert_features(
    classifier: Classifier,
    sent: Tensor,
    change: Tensor,
    labels: Tensor,
    start: Tensor,
    scale: float,
) -> Tensor:
    """Return image features whose gradient points where an update went (gradient inversion: Zhu et
    al., NeurIPS 2019; by the cosine: Geiping et al., NeurIPS 2020, equation 4).

    Args:
        classifier: shared numbers -> class embeddings.
        sent: what the client was sent, (d,).
        change: what it sent back, less that, (d,).
        labels: class of each feature that is looked for, (n,).
        start: where the search begins, (n, e).
        scale: 1 / temperature.

    Returns:
        (n, e), unit norm.
    """
    point = sent.detach().requires_grad_()
    with torch.enable_grad():
        embeddings = classifier(point)
    fixed, truth = embeddings.detach(), one_hot(labels, len(embeddings)).to(embeddings.dtype)
    wanted = -change.detach()
    features = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([features], lr=RATE)
    for _ in range(STEPS):
        with torch.enable_grad():
            images = normalize(features, dim=1)
            # The gradient of the cross-entropy with regard to the embeddings.
            errors = torch.softmax(scale * images @ fixed.T, dim=1) - truth
            pull = scale * errors.T @ images / len(images)
        (gradient,) = torch.autograd.grad(embeddings, point, pull.detach(), retain_graph=True)
        with torch.enable_grad():
            seen = gradient.requires_grad_()
            loss = 1 - cosine_similarity(seen, wanted, dim=0)
        (slope,) = torch.autograd.grad(loss, seen)
        (features.grad,) = torch.autograd.grad(pull, features, _along(classifier, sent, slope))
        optimizer.step()
    return normalize(features.detach(), dim=1)


@torch.no_grad()
def _along(classifier: Classifier, point: Tensor, direction: Tensor) -> Tensor:
    """How the embeddings move along a direction: central differences, since the text encoder's own
    backward pass has no second derivative."""
    length = direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    step = torch.finfo(point.dtype).eps ** (1 / 3) * point.norm().clamp_min(1e-3) / length
    ahead, behind = classifier(point + step * direction), classifier(point - step * direction)
    return (ahead - behind) / (2 * step)
