"""What one update says: classes, and the feature of a single image."""

import torch
from torch.nn.functional import cross_entropy, normalize

from fedpgp.audit.reconstruction import class_scores, invert_features

SCALE = 10.0


def embeddings(flat: torch.Tensor) -> torch.Tensor:
    """Four classes of width 6, from 40 numbers by a small network."""
    rng = torch.Generator().manual_seed(3)
    first, last = (torch.randn(40, 24, generator=rng) for _ in range(2))
    mixed = torch.tanh(flat @ first.double() / 6) * 1.5 + flat @ last.double() / 6
    return normalize(mixed.view(4, 6), dim=1)


def update(point: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One step of gradient descent on the cross-entropy."""
    leaf = point.clone().requires_grad_()
    loss = cross_entropy(SCALE * images @ embeddings(leaf).T, labels)
    return -0.01 * torch.autograd.grad(loss, leaf)[0]


def test_a_single_image_is_found_again():
    rng = torch.Generator().manual_seed(0)
    point = torch.randn(40, generator=rng).double()
    image = normalize(torch.randn(1, 6, generator=rng).double(), dim=1)
    label = torch.tensor([2])
    start = normalize(image + 0.8 * torch.randn(1, 6, generator=rng).double(), dim=1)
    change = update(point, image, label)
    found = invert_features(embeddings, point, change, label, start, SCALE)
    assert (found * image).sum() > 0.98 > 0.9 > (start * image).sum()
    noised = change + change.norm() * torch.randn(40, generator=rng).double()
    lost = invert_features(embeddings, point, noised, label, start, SCALE)
    assert (lost * image).sum() < (found * image).sum() - 0.05


def test_classes_that_were_trained_on_score_higher():
    """A step of gradient descent on the embeddings themselves."""
    rng = torch.Generator().manual_seed(1)
    before, public = (normalize(torch.randn(4, 6, generator=rng), dim=1) for _ in range(2))
    labels = torch.tensor([0, 2, 0, 2])
    images = normalize(public[labels] + 0.1 * torch.randn(4, 6, generator=rng), dim=1)
    leaf = before.clone().requires_grad_()
    cross_entropy(SCALE * images @ leaf.T, labels).backward()
    scores = class_scores(before, normalize(before - 0.01 * leaf.grad, dim=1), public, SCALE)
    assert scores[[0, 2]].min() > 0 > scores[[1, 3]].max()
