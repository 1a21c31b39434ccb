"""PromptFL: loss and gradients against its equations, written out."""

from tests.helpers.equations import promptfl
from tests.helpers.gradients import check_gradients


def test_loss_and_gradients(task, batch):
    check_gradients("promptfl", {}, promptfl, task, batch)
