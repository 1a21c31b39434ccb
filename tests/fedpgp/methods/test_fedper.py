"""FedPer: loss and gradients against its equations, written out."""

import torch

from tests.helpers.equations import (
    cosine_cross_entropy,
    prompted,
)
from tests.helpers.gradients import check_gradients


def fedper(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, torch.cat([p["p_G"], p["p"]])))


def test_loss_and_gradients(task, batch):
    check_gradients("fedper", {}, fedper, task, batch)
