"""FedPHA: loss and gradients against its equations, written out."""

import pytest
import torch

from tests.helpers.equations import (
    cosine_cross_entropy,
    prompted,
)
from tests.helpers.gradients import check_gradients


def fedpha(task, s, batch, k, p, global_params):
    p_G = p["p_G"] if s.through_svd else p["p_G"].detach()
    values, vectors = torch.linalg.eigh(
        p_G @ p_G.T
    )  # ascending; right singular vectors are p_G^T u / sigma
    kept = len(values) - int(len(values) * (1 - s.ratio))
    weak = torch.stack([p_G.T @ vectors[:, i] / values[i].sqrt() for i in range(kept)], 1)
    z_L, z_G = prompted(task, p["p_L"]), prompted(task, p["p_G"])
    z_P = prompted(task, p["p_L"] @ weak @ weak.T)
    loss = cosine_cross_entropy(task, batch, k, z_L) + cosine_cross_entropy(task, batch, k, z_G)
    for own, shared, weakened in zip(z_L, z_G, z_P, strict=True):
        push = torch.relu(s.alpha - (own - shared).norm())
        loss = loss + (((own - weakened) ** 2).mean() + push) / len(z_L)
    return loss


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5, "alpha": 0.7}, {"ratio": 0.34, "through_svd": True}], ids=str
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedpha", options, fedpha, task, batch)
