"""The image tower with prompts and adapters. What methods make of it is compared with open_clip's
own in methods/test_vpt.py."""

import pytest
import torch
from torch.testing import assert_close

import fedpgp.towers.folded
from fedpgp.clip import load_clip
from fedpgp.errors import FedPGPError
from fedpgp.towers.image import ImageTower, check_depth


def test_a_few_images_at_a_time_are_the_same(monkeypatch):
    tower = ImageTower(load_clip("tiny_vit"), torch.float64, "vpt")
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 3, 64, 64)
    prompts = torch.randn(2, 3, 4, tower.width, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(
        2, 1, 1, dtype=torch.float64, requires_grad=True
    )  # each client's own adapter
    seen = []

    def adapter(block, x):
        seen.append(x.shape[1])
        return scale * x.sin() if block > 2 else None

    def run():
        seen.clear()
        features = tower(pixels, prompts, adapter)
        return features, torch.autograd.grad(features.cumsum(-1).sin().sum(), (prompts, scale))

    together, grads = run()
    assert len(seen) == tower.depth
    monkeypatch.setattr(fedpgp.towers.folded, "HIDDEN_BYTES", 1)
    parts, same = run()
    assert len(seen) == 3 * tower.depth  # one image of both clients at a time
    assert_close(parts, together, rtol=0, atol=1e-12)
    assert_close(same, grads, rtol=1e-10, atol=1e-12)


def test_prompts_in_more_blocks_than_there_are_are_refused():
    check_depth("method.depth", 5, 5, "image")
    with pytest.raises(FedPGPError, match="method.depth=6: the image tower .* 5 blocks; take no m"):
        check_depth("method.depth", 6, 5, "image")
