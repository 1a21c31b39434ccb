"""FedTPG: loss and gradients against its equations, written out."""

import pytest
import torch

from tests.helpers.equations import (
    attended,
    classes,
    cross_entropy_of,
    gated,
    normed,
    prompted,
    real,
    sentence,
)
from tests.helpers.gradients import check_gradients


def fedtpg(task, s, batch, k, p, global_params):
    own = sorted({y for _, y, _ in real(batch, k)})
    names = [normed(p, "norm_e", sentence(task, task.class_names[c])) for c in own]
    context = []
    for query in p["Q"]:
        x = attended(p, "attention", normed(p, "norm_q", query), names, s.heads)
        context.append(x + gated(p, "ff", x))
    texts, image = prompted(task, torch.stack(context)), batch.images.features[k]
    asked = own if s.loss_classes == "own" else classes(task)
    nothing = torch.tensor(-torch.inf).double()

    def logits(b):
        return [
            task.logit_scale * (image[b] @ t) if c in asked else nothing
            for c, t in enumerate(texts)
        ]

    return cross_entropy_of(batch, k, logits)


@pytest.mark.parametrize("options", [{"heads": 2}, {"heads": 2, "loss_classes": "own"}], ids=str)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedtpg", options, fedtpg, task, batch)
