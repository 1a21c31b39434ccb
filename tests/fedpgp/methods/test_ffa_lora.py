"""FFA-LoRA: loss and gradients against its equations, written out; averages are exact."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from fedpgp.seeding import generator
from tests.helpers.equations import adapters_of, classes, cosine_cross_entropy, merged_feature
from tests.helpers.gradients import check_gradients


def ffa_lora(task, s, batch, k, p, global_params):
    """A as NumPy draws it, layer by layer."""
    rng, width = generator(s.a_seed, "ffa_lora"), 32
    frozen = {
        f"text.{layer}.A": torch.from_numpy(
            rng.uniform(-(width**-0.5), width**-0.5, (2, s.rank, width))
        )
        for layer in ("q", "v")
    }
    texts = [merged_feature(task, c, [adapters_of({**p, **frozen}, s)]) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts)


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 3, "a_seed": 5}], ids=str)
def test_loss_and_gradients(task, batch, options):
    check_gradients("ffa_lora", options, ffa_lora, task, batch)


def test_the_average_is_that_of_the_products(task):
    """Of any weights: B A of the averaged B is the weighted mean of each client's B A."""
    method = METHODS["ffa_lora"](METHODS["ffa_lora"].Settings(), task)
    start, rng = method.init_shared(generator(0, "shared")), torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    for name, B in start.items():
        of_clients = torch.randn(3, *B.shape, generator=rng, dtype=torch.float64)
        A = method.A[name.replace(".B", ".A")]
        dense = sum(w * b @ A for w, b in zip(weights, of_clients, strict=True))
        average = torch.einsum("k,k...->...", weights, of_clients)
        assert_close(average @ A, dense, rtol=1e-12, atol=1e-12)
