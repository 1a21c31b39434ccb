"""SCAFFOLD: loss and gradients against its equations, written out."""

import torch

from tests.helpers.equations import (
    promptfl,
)
from tests.helpers.gradients import check_gradients


def scaffold(task, s, batch, k, p, global_params):
    loss = promptfl(task, s, batch, k, p, global_params)
    (grad,) = torch.autograd.grad(loss, p["p_G"])
    return loss, {"p_G": grad - p["c_i"] + p["c"]}


def test_loss_and_gradients(task, batch):
    check_gradients("scaffold", {}, scaffold, task, batch)
