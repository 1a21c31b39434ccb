"""FedAMP: loss and gradients against its equations, written out."""

import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from tests.helpers.equations import cosine_cross_entropy, prompted
from tests.helpers.gradients import check_gradients


def fedamp(task, s, batch, k, p, global_params):
    pull = sum((a - b) ** 2 for a, b in zip(p["p"].flatten(), p["u"].flatten(), strict=True))
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p"])) + s.pull / 2 * pull


def test_loss_and_gradients(task, batch):
    check_gradients("fedamp", {"sigma": 2.0, "alpha": 0.4}, fedamp, task, batch)


def test_fedamp_server(task):
    """u_i written out; a client that never sent is in nobody's mixture."""
    method = METHODS["fedamp"](METHODS["fedamp"].Settings(sigma=0.5, alpha=0.6), task)
    models = 0.1 * torch.randn(
        4, task.n_ctx, task.clip.width, generator=torch.Generator().manual_seed(3)
    )
    known = torch.tensor([1.0, 1.0, 0.0, 1.0])
    sent = method.download_for(0, {"models": models, "known": known})
    share = {j: 0.6 / 2 * torch.exp(-((models[0] - models[j]).norm() ** 2) / 0.5) for j in (1, 3)}
    expected = (1 - sum(share.values())) * models[0] + sum(a * models[j] for j, a in share.items())
    assert_close(sent["u"], expected)
    assert (
        sent["known"] == 1
        and method.download_for(2, {"models": models, "known": known})["known"] == 0
    )
