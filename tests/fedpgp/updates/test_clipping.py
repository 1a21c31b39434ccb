"""Clipping and noise, against a loop over clients and against what they promise."""

import math

import numpy as np
import pytest
import torch

from fedpgp.updates.clipping import clipped, norms
from fedpgp.updates.gaussian import standard_normal


def test_each_client_is_clipped_over_all_its_tensors_together():
    rng = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(3, *shape, generator=rng, dtype=torch.float64)
        for name, shape in {"p": (2, 5), "c": (4,), "x": ()}.items()
    }
    tensors = {
        name: tensor * torch.tensor([0.01, 1.0, 100.0]).view(3, *[1] * (tensor.dim() - 1))
        for name, tensor in tensors.items()
    }
    after, before = clipped(tensors, 1.5)
    for client in range(3):
        numbers = [x for tensor in tensors.values() for x in tensor[client].flatten().tolist()]
        norm = math.sqrt(sum(x * x for x in numbers))
        assert before[client].item() == pytest.approx(norm, rel=1e-12)
        factor = min(1.0, 1.5 / norm)
        for name, tensor in tensors.items():
            torch.testing.assert_close(after[name][client], tensor[client] * factor)
    assert norms(after).max() <= 1.5 * (1 + 1e-12)
    for name, tensor in tensors.items():  # the first client is within the bound: not a bit changes
        assert torch.equal(after[name][0], tensor[0])


def test_zeros_stay_zeros():
    after, before = clipped({"p": torch.zeros(2, 3)}, 1.0)
    assert torch.equal(after["p"], torch.zeros(2, 3)) and before.tolist() == [0, 0]


def test_noise_is_secret_unless_it_is_seeded():
    same = [standard_normal((4, 3), np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*same) and same[0].dtype == torch.float64
    first, second = standard_normal((50, 40), None), standard_normal((50, 40), None)
    assert first.shape == (50, 40) and not torch.equal(first, second)
    assert abs(first.std().item() - 1) < 0.1
