"""PLOT: loss and gradients against its equations, written out."""

import pytest
import torch.nn.functional as F

from tests.helpers.equations import (
    classes,
    feature,
    prompted,
    transported,
)
from tests.helpers.gradients import check_gradients


def plot(task, s, batch, k, p, global_params):
    return transported(task, k, batch, [prompted(task, context) for context in p["p_G"]], s, False)


def plot_pooled(task, s, batch, k, p, global_params):
    """``logits2 + logits`` where the data set is ImageNet: plot-coop/trainers/plot.py,
    CHENGY12/PLOT at 728539f."""
    texts, image = [prompted(task, context) for context in p["p_G"]], batch.images.features[k]

    raw = [[feature(task, c, context, unit=False) for c in classes(task)] for context in p["p_G"]]

    def pooled(b):
        means = [F.normalize(sum(text[c] for text in raw) / len(raw), dim=0) for c in classes(task)]
        return [task.logit_scale * (image[b] @ mean) for mean in means]

    return transported(task, k, batch, texts, s, False, pooled)


@pytest.mark.parametrize(
    ("options", "equations"),
    [({"prompts": 3}, plot), ({"prompts": 2, "pooled": True}, plot_pooled)],
)
def test_loss_and_gradients(task, batch, options, equations):
    check_gradients("plot", options, equations, task, batch)
