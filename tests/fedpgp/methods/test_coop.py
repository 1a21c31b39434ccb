"""CoOp: loss and gradients against its equations, written out."""

from tests.helpers.equations import cosine_cross_entropy, prompted
from tests.helpers.gradients import check_gradients


def coop(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p"]))


def test_loss_and_gradients(task, batch):
    check_gradients("coop", {}, coop, task, batch)
