"""FedProx: loss and gradients against its equations, written out."""

from tests.helpers.equations import promptfl
from tests.helpers.gradients import check_gradients


def fedprox(task, s, batch, k, p, global_params):
    pull = sum(
        (a - b) ** 2
        for a, b in zip(p["p_G"].flatten(), global_params["p_G"].flatten(), strict=True)
    )
    return promptfl(task, s, batch, k, p, global_params) + s.mu / 2 * pull


def test_loss_and_gradients(task, batch):
    check_gradients("fedprox", {"mu": 0.7}, fedprox, task, batch)
