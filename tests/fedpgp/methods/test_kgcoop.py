"""KgCoOp: loss and gradients against its equations, written out."""

from tests.helpers.equations import cosine_cross_entropy, photo, prompted
from tests.helpers.gradients import check_gradients


def kgcoop(task, s, batch, k, p, global_params):
    text = prompted(task, p["p_G"])
    agreement = sum(t @ photo(task, c) for c, t in enumerate(text)) / len(text)
    return cosine_cross_entropy(task, batch, k, text) + s.weight * (1 - agreement)


def test_loss_and_gradients(task, batch):
    check_gradients("kgcoop", {"weight": 3.0}, kgcoop, task, batch)
