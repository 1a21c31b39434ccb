"""ProGrad: loss and gradients against its equations, written out."""

import torch

from tests.helpers.equations import (
    classes,
    photo,
    prompted,
    promptfl,
    real,
)
from tests.helpers.gradients import check_gradients


def prograd(task, s, batch, k, p, global_params):
    loss = promptfl(task, s, batch, k, p, global_params)
    known = 0.0
    for b, _, w in real(batch, k):
        image = batch.images.features[k, b]
        y = (
            torch.stack([task.logit_scale * (image @ t) for t in prompted(task, p["p_G"])])
            / s.temperature
        )
        y_C = (
            torch.stack([task.logit_scale * (image @ photo(task, c)) for c in classes(task)])
            / s.temperature
        )
        for c in classes(task):
            target = y_C[c].exp() / y_C.exp().sum()
            known = known - w * s.temperature**2 * target * torch.log(y[c].exp() / y.exp().sum())
    (a,) = torch.autograd.grad(loss, p["p_G"], retain_graph=True)
    (b,) = torch.autograd.grad(known, p["p_G"])
    unit = b / b.norm()
    along = (a * unit).sum()
    return loss, {"p_G": a if along >= 0 else a - s.strength * along * unit}


def test_loss_and_gradients(task, batch):
    check_gradients("prograd", {"strength": 0.8, "temperature": 1.5}, prograd, task, batch)
