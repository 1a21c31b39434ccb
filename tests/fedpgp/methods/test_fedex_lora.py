"""FedEx-LoRA: loss and gradients against its equations, written out; the exact server."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from fedpgp.methods.base import RoundContext
from fedpgp.seeding import generator
from tests.helpers.equations import (
    adapted_cross_entropy,
    adapters_of,
    classes,
    cosine_cross_entropy,
    merged_feature,
)
from tests.helpers.gradients import check_gradients


def fedex_lora(task, s, batch, k, p, global_params):
    """R beside the adapters: R = R I of full rank."""
    residual, trained = {}, {n: t for n, t in p.items() if not n.endswith(".R")}
    for name in set(p) - set(trained):
        R, place = p[name], name.removesuffix(".R")
        residual[f"{place}.B"] = R
        residual[f"{place}.A"] = torch.eye(R.shape[-1], dtype=R.dtype).expand(len(R), -1, -1)

    def adapters(tower):
        _, dense = adapters_of(residual, s, tower=tower)
        return [adapters_of(trained, s, tower=tower), (1.0, dense)]

    if s.where == "image":
        return adapted_cross_entropy(task, batch, k, [], adapters("image"))
    texts = [merged_feature(task, c, adapters("text")) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"rank": 3, "alpha": 3.0, "targets": ["k", "mlp", "out"], "blocks": "last_1"},
        {"rank": 2, "where": "image", "targets": ["q", "mlp"]},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedex_lora", options, fedex_lora, task, batch)


def test_every_round_is_the_exact_weighted_mean_of_the_dense_products(task):
    """R + (alpha / b) B A of the next round is R + (alpha / b) sum_i w_i B_i A_i of this one:
    aggregate_models_ours in fed_agg.py, RaghavSinghal10/fedex-lora at 683a3f3."""
    method = METHODS["fedex_lora"](METHODS["fedex_lora"].Settings(rank=2, alpha=6), task)
    shared, rng = method.init_shared(generator(0, "shared")), torch.Generator().manual_seed(0)
    state, weights = method.init_server_state(9), torch.tensor([0.2, 0.5, 0.3]).double()
    for server_round in (1, 2):
        updates = {n: torch.randn(3, *t.shape, generator=rng).double() for n, t in shared.items()}
        averaged = {n: torch.einsum("k,k...->...", weights, t) for n, t in updates.items()}
        about = (server_round, 2, [0, 4, 7], 9, weights, shared, updates, state, 0.1, 0)
        shared, after = method.update_server(averaged, RoundContext(*about))
        for layer in ("q", "v"):
            A, B, R = (f"text.{layer}.{part}" for part in "ABR")
            for block in range(2):
                products = zip(weights, updates[A], updates[B], strict=True)
                dense = state[R][block] + sum(3 * w * b[block] @ a[block] for w, a, b in products)
                found = after[R][block] + 3 * shared[B][block] @ shared[A][block]
                assert_close(found, dense, rtol=0, atol=1e-9)
        state = method.download_for(4, after)
