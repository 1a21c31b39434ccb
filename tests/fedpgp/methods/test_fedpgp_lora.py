"""FedPGP with adapters: loss and gradients against its equations, written out."""

import pytest
import torch
import torch.nn.functional as F

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from tests.helpers.equations import (
    adapted_cross_entropy,
    adapters_of,
    classes,
    cosine_cross_entropy,
    merged_feature,
    photo,
)
from tests.helpers.gradients import check_gradients


def fedpgp_lora(task, s, batch, k, p, global_params):
    general, private = adapters_of(p, s), adapters_of(p, s, "own.", s.own_rank)
    z_G = [merged_feature(task, c, [general]) for c in classes(task)]
    z_i = [merged_feature(task, c, [general, private]) for c in classes(task)]
    contrast = 0.0
    for c in classes(task):
        positive = torch.exp(F.cosine_similarity(z_G[c], photo(task, c), dim=0) / s.tau)
        negative = torch.exp(F.cosine_similarity(z_G[c], z_i[c], dim=0) / s.tau)
        contrast = contrast - torch.log(positive / (positive + negative)) / 5
    if s.where == "both":
        inside = [adapters_of(p, s, tower="image")]
        inside += [adapters_of(p, s, "own.", s.own_rank, tower="image")]
        loss = adapted_cross_entropy(task, batch, k, [general, private], inside)
    else:
        loss = cosine_cross_entropy(task, batch, k, z_i)
    return loss + s.mu * contrast


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2, "own_rank": 3, "mu": 0.7, "tau": 0.3},
        {"rank": 3, "own_rank": 1, "mu": 0.0, "targets": ["out", "mlp"]},
        {"rank": 1, "own_rank": 2, "where": "both", "targets": ["v"]},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedpgp_lora", options, fedpgp_lora, task, batch)


def test_the_contrast_needs_adapters_in_the_text_tower():
    with pytest.raises(FedPGPError, match=r"method.where=image: .* text or both"):
        METHODS["fedpgp_lora"].Settings(where="image")
