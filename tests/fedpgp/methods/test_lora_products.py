"""Products of low-rank adapters, averaged, against dense matrices."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods.lora_products import best_basis, best_factors, mean_product


def adapters(clients, blocks, outputs, inputs, ranks):
    """Clients of several ranks, padded with zeros to the largest."""
    rng, most = torch.Generator().manual_seed(0), max(ranks)
    A = torch.randn(clients, blocks, most, inputs, generator=rng, dtype=torch.float64)
    B = torch.randn(clients, blocks, outputs, most, generator=rng, dtype=torch.float64)
    for k in range(clients):
        A[k, :, ranks[k] :] = B[k, :, :, ranks[k] :] = 0
    weights = torch.rand(clients, generator=rng, dtype=torch.float64)
    return weights / weights.sum(), A, B


def dense(weights, A, B, block):
    return sum(
        float(w) * b[block].numpy() @ a[block].numpy()
        for w, a, b in zip(weights, A, B, strict=True)
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(32, 32), (24, 96), (96, 24)])
def test_where_the_rank_suffices_the_product_is_the_exact_weighted_mean(outputs, inputs):
    weights, A, B = adapters(3, 2, outputs, inputs, (4, 2, 1))
    found_A, found_B = best_factors(weights, A, B, 7)
    assert found_A.shape == (2, 7, inputs) and found_B.shape == (2, outputs, 7)
    mean = mean_product(weights, A, B)
    for block in range(2):
        expected = torch.from_numpy(dense(weights, A, B, block))
        assert_close(mean[block], expected, rtol=0, atol=1e-9)
        assert_close(found_B[block] @ found_A[block], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("clients", [2, 12])  # fewer and more stacked directions than the width
def test_of_every_rank_it_is_the_nearest_matrix(clients):
    weights, A, B = adapters(clients, 2, 16, 20, [4, 2] * (clients // 2))
    found_A, found_B = best_factors(weights, A, B, 4)
    for block in range(2):
        U, sigma, Vh = np.linalg.svd(dense(weights, A, B, block))
        for rank in (1, 2, 4):
            nearest = torch.from_numpy(U[:, :rank] * sigma[:rank] @ Vh[:rank])
            product = found_B[block, :, :rank] @ found_A[block, :rank]
            assert_close(product, nearest, rtol=0, atol=1e-9)
        assert_close(found_A[block] @ found_A[block].T, torch.eye(4).double(), rtol=0, atol=1e-9)


def test_adapters_that_are_still_zero_stay_so():
    weights, A, B = adapters(3, 1, 8, 8, (2, 2, 2))
    found_A, found_B = best_factors(weights, A, torch.zeros_like(B), 2)
    assert found_A.isfinite().all() and not found_B.any()


def test_the_signs_of_a_basis_are_those_of_the_one_before():
    weights, A, B = adapters(3, 2, 24, 20, (4, 2, 1))
    found_A, found_B = best_basis(weights, A, B, 4, torch.zeros(2, 24, 4))
    signs = torch.tensor([[1.0, -1, -1, 1], [-1, 1, -1, -1]]).double()
    noise = 0.01 * torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(1))
    before = found_B * signs.unsqueeze(-2) + noise
    signed_A, signed_B = best_basis(weights, A, B, 4, before.float())
    assert torch.equal(signed_B, found_B * signs.unsqueeze(-2))
    assert torch.equal(signed_A, found_A * signs.unsqueeze(-1))
    mean = mean_product(weights, A, B)
    for block in range(2):
        U, sigma, Vh = torch.linalg.svd(mean[block])
        nearest = U[:, :4] * sigma[:4] @ Vh[:4]
        assert_close(signed_B[block] @ signed_A[block], nearest, rtol=0, atol=1e-9)
        eye = torch.eye(4).double()
        assert_close(signed_B[block].T @ signed_B[block], eye, rtol=0, atol=1e-9)
