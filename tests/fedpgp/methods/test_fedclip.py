"""FedCLIP: loss and gradients against its equations, written out."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.equations import (
    classes,
    cross_entropy_of,
    layer,
    photo,
    real,
    sentence,
)
from tests.helpers.gradients import check_gradients


def adapted(p, f):
    a = torch.softmax(layer(p, "2", torch.tanh(layer(p, "1", f))), 0)
    return F.normalize(a * f, dim=0)


def picture(task, s, c):
    """``prompt + ' ' + x`` of ImageTextData in
    fedclip/utils/prepare_data_dg_clip.py, without a full stop."""
    return (
        photo(task, c)
        if s.text == "template"
        else sentence(task, f"a picture of a {task.class_names[c]}")
    )


def fedclip(task, s, batch, k, p, global_params):
    """Repository microsoft/PersonalizedFL at 441670e, fedclip/methods/fed_at_clip.py,
    ``train``: ``img_adap`` reads what ``encode_image`` gives, and the product with it is
    brought to unit norm."""
    images = [
        (adapted(p, batch.images.features_raw[k, b]), picture(task, s, y), w)
        for b, y, w in real(batch, k)
    ]
    total = 0.0
    for i, (f, t, w) in enumerate(images):
        rows = torch.stack([task.logit_scale * (f @ other) for _, other, _ in images])
        columns = torch.stack([task.logit_scale * (other @ t) for other, _, _ in images])
        total = total - w / 2 * sum(torch.log(z.exp()[i] / z.exp().sum()) for z in (rows, columns))
    return total


def fedclip_cross_entropy(task, s, batch, k, p, global_params):
    def logits(b):
        f = adapted(p, batch.images.features_raw[k, b])
        return [task.logit_scale * (f @ picture(task, s, c)) for c in classes(task)]

    return cross_entropy_of(batch, k, logits)


@pytest.mark.parametrize(
    ("options", "equations"),
    [
        ({}, fedclip),
        ({"text": "template"}, fedclip),
        ({"loss": "cross_entropy"}, fedclip_cross_entropy),
    ],
)
def test_loss_and_gradients(task, batch, options, equations):
    check_gradients("fedclip", options, equations, task, batch)
