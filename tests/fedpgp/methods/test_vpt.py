"""VPT: loss and gradients against its equations, written out."""

import pytest
import torch

from fedpgp.clip import load_clip
from fedpgp.errors import FedPGPError
from fedpgp.towers.image import ImageTower
from tests.helpers.equations import both_towers, classes, photo
from tests.helpers.gradients import check_gradients


def vpt(task, s, batch, k, p, global_params):
    return both_towers(task, batch, k, [photo(task, c) for c in classes(task)], p["v"])


@pytest.mark.parametrize("options", [{"tokens": 3, "depth": 1}, {"tokens": 2, "depth": 2}], ids=str)
def test_loss_and_gradients(task, batch, options):
    check_gradients("vpt", options, vpt, task, batch)


def test_methods_inside_the_image_tower_refuse_a_convolutional_one():
    with pytest.raises(FedPGPError, match="method=vpt.*model=tiny_vit"):
        ImageTower(load_clip("tiny"), torch.float32, "vpt")
