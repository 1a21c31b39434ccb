"""Losses against loops over classes and images."""

import math

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.losses import cross_entropy, prompt_contrastive_loss


def test_prompt_contrastive_loss_class_by_class():
    torch.manual_seed(0)
    anchor, positive, negative = torch.randn(
        3, 4, 6, 8, dtype=torch.float64
    )  # not unit norm: the loss takes cosines
    loss = prompt_contrastive_loss(anchor, positive, negative, 0.5)
    assert loss.shape == (4,)
    for k in range(4):
        total = 0.0
        for c in range(6):
            pull = F.cosine_similarity(anchor[k, c], positive[k, c], dim=0).item() / 0.5
            push = F.cosine_similarity(anchor[k, c], negative[k, c], dim=0).item() / 0.5
            total += -math.log(math.exp(pull) / (math.exp(pull) + math.exp(push)))
        assert_close(loss[k].item(), total / 6)


def test_guidance_without_client_axis_broadcasts():
    z_G, z_i, z_C = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(5, 8)
    assert_close(
        prompt_contrastive_loss(z_G, z_C, z_i, 0.5),
        prompt_contrastive_loss(z_G, z_C.expand(3, 5, 8), z_i, 0.5),
    )


def test_cross_entropy_ignores_padding():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, dtype=torch.float64), torch.randint(0, 3, (2, 4))
    weights = torch.tensor([[1 / 4] * 4, [1 / 2, 1 / 2, 0, 0]], dtype=torch.float64)
    loss = cross_entropy(logits, labels, weights)
    assert_close(loss[0], F.cross_entropy(logits[0], labels[0]))
    assert_close(loss[1], F.cross_entropy(logits[1, :2], labels[1, :2]))
