"""CoCoOp: loss and gradients against its equations, written out."""

import torch

from tests.helpers.equations import (
    cross_entropy_of,
    layer,
    prompted,
)
from tests.helpers.gradients import check_gradients


def cocoop(task, s, batch, k, p, global_params):
    def logits(b):
        x = batch.images.features[k, b]
        shift = layer(p, "2", torch.relu(layer(p, "1", x)))
        return [task.logit_scale * (x @ t) for t in prompted(task, p["p_G"] + shift)]

    return cross_entropy_of(batch, k, logits)


def test_loss_and_gradients(task, batch):
    check_gradients("cocoop", {}, cocoop, task, batch)
