"""Ditto: loss and gradients against its equations, written out."""

from tests.helpers.equations import cosine_cross_entropy, prompted
from tests.helpers.gradients import check_gradients


def ditto(task, s, batch, k, p, global_params):
    pull = sum(
        (a - b) ** 2 for a, b in zip(p["p"].flatten(), global_params["p_G"].flatten(), strict=True)
    )
    both = [cosine_cross_entropy(task, batch, k, prompted(task, p[name])) for name in ("p_G", "p")]
    return both[0] + both[1] + s.pull / 2 * pull


def test_loss_and_gradients(task, batch):
    check_gradients("ditto", {"pull": 0.3}, ditto, task, batch)
