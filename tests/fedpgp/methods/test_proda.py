"""ProDA: loss and gradients against its equations, written out."""

import pytest
import torch

from fedpgp.seeding import generator
from tests.helpers.equations import (
    classes,
    feature,
    prompted,
    real,
)
from tests.helpers.gradients import check_gradients


def proda(task, s, batch, k, p, global_params):
    drawn = generator(0, "proda", k, 2, 1).permutation(s.prompts)[: s.a_step]
    contexts = [p["p_G"][int(i)] for i in drawn]
    z = [prompted(task, context) for context in contexts]
    n = len(z)
    mean = [sum(text[c] for text in z) / n for c in classes(task)]

    def covariance(c, other):
        return sum((text[c] - mean[c]) * (text[other] - mean[other]) for text in z) / (n + 1)

    total = 0.0
    for b, y, w in real(batch, k):
        x, scale, logits = batch.images.features[k, b], task.logit_scale, []
        for c in classes(task):
            spread = covariance(y, y) + covariance(c, c) - 2 * covariance(y, c)
            logits.append(scale * (x @ mean[c]) + scale**2 / 2 * (x**2 * spread).sum())
        total = total - w * torch.log_softmax(torch.stack(logits), 0)[y]
    free = [feature(task, "", context) for context in contexts]
    pairs = [abs(free[i] @ free[j]) for i in range(n) for j in range(n) if i != j]
    return total + (s.ratio * sum(pairs) / len(pairs) if pairs else 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": 3, "a_step": 3, "ratio": 0.4},
        {"prompts": 4, "a_step": 2},
        {"prompts": 2, "a_step": 1},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("proda", options, proda, task, batch)
