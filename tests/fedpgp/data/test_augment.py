"""Augmented views: what a crop may be, that a view depends on its number alone, and
that training sees them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedpgp.data import ArraySplit
from fedpgp.data.augment import AREA, AugmentedSplit, random_resized_crop
from fedpgp.data.lookup import AugmentedViews
from fedpgp.training import TrainingSettings, drawn_views


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a crop shows where it was taken."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("shape", [(100, 100), (160, 90), (40, 400), (1, 1)])
def test_crops_have_the_size_and_take_part_of_the_image(shape):
    rng = np.random.default_rng(0)
    areas, mirrored = [], 0
    for _ in range(200):
        crop = np.asarray(random_resized_crop(gradient(*shape), 32, rng), dtype=float)
        assert crop.shape == (32, 32, 3)
        across, down = crop[16, :, 0], crop[:, 16, 1]
        mirrored += across[-1] < across[0]
        areas.append(abs(across[-1] - across[0]) * abs(down[-1] - down[0]) / 255**2)
    if shape == (100, 100):
        assert 70 < mirrored < 130
        assert max(areas) <= AREA[1] and 0.4 < np.mean(areas) < 0.65  # area is uniform in 0.08 … 1


def test_a_view_depends_on_its_number_and_the_image_alone():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 20, 30, 3), dtype=np.uint8)
    split = ArraySplit(pixels, [0, 1, 2])
    first, second = AugmentedSplit(split, 0, 16), AugmentedSplit(split, 1, 16)
    again = AugmentedSplit(ArraySplit(pixels, [0, 1, 2]), 0, 16)
    assert first.image(1).tobytes() == again.image(1).tobytes() != second.image(1).tobytes()
    assert first.fingerprint == again.fingerprint
    assert (
        len(
            {
                first.fingerprint,
                second.fingerprint,
                split.fingerprint,
                AugmentedSplit(split, 0, 8).fingerprint,
            }
        )
        == 4
    )


def test_views_are_looked_up_behind_one_another():
    tables = torch.arange(24.0).view(3, 4, 2)
    views = AugmentedViews(lambda view: tables[view], 4)
    index = torch.tensor([[0, 5], [11, 2]])
    assert torch.equal(views[index], tables.view(12, 2)[index])


def test_which_view_is_drawn():
    cached = TrainingSettings(epochs=3, views=4)
    drawn = drawn_views(200, cached, seed=1, client=2, server_round=3)
    assert drawn.shape == (3, 200) and set(drawn.flatten()) == {0, 1, 2, 3}
    assert not np.array_equal(drawn, drawn_views(200, cached, seed=1, client=2, server_round=4))
    live = TrainingSettings(epochs=2, views=None)
    # Every epoch of a run has its own, whatever a slow client has done before.
    slow = replace(live, epochs=1)
    seen = [
        *drawn_views(5, live, 0, 0, 3),
        *drawn_views(5, slow, 0, 0, 4),
        *drawn_views(5, live, 0, 0, 5),
    ]
    assert all(len(set(epoch)) == 1 for epoch in seen) and len({epoch[0] for epoch in seen}) == 5
    assert not drawn_views(5, TrainingSettings(epochs=2), 0, 0, 1).any()
