"""PromptFolio: loss and gradients against its equations, written out."""

from tests.helpers.equations import cosine_cross_entropy, prompted
from tests.helpers.gradients import check_gradients


def promptfolio(task, s, batch, k, p, global_params):
    pairs = zip(prompted(task, p["p_G"]), prompted(task, p["p"]), strict=True)
    return cosine_cross_entropy(task, batch, k, [(1 - s.theta) * a + s.theta * b for a, b in pairs])


def test_loss_and_gradients(task, batch):
    check_gradients("promptfolio", {"theta": 0.3}, promptfolio, task, batch)
