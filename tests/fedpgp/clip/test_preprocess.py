"""Images of any shape go through a model's own evaluation transform."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedpgp.clip.preprocess import LONGEST, Preprocess
from fedpgp.clip.torchvision_fix import import_open_clip


def transform(**options):
    return import_open_clip().image_transform(32, is_train=False, **options)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(40, 30), (1, 1), (4, 4 * LONGEST), (3 * LONGEST, 3)])
def test_any_photo_is_seen_as_the_model_s_own_transform_has_it(size):
    image, own = noise(*size), transform()
    assert torch.equal(Preprocess(own)(image), own(image))
    assert repr(Preprocess(own)) == repr(own)


@pytest.mark.parametrize("size", [(8 * LONGEST, 4), (3, 9 * LONGEST + 1)])
def test_of_a_line_the_centre_is_seen_as_before(size):
    image, own = noise(*size), transform()
    apart = (Preprocess(own)(image) - own(image)).abs()
    assert apart.max() < 0.6 and apart.mean() < 0.05  # by less than a pixel


def test_a_line_does_not_become_gigabytes():
    """32 x 32,000,000 columns would be 3 GB."""
    seen = []
    own = transform()

    class Recording:
        transforms = own.transforms

        def __call__(self, image):
            seen.append(image.size)
            return own(image)

    assert Preprocess(Recording())(noise(1_000_000, 1)).shape == (3, 32, 32)
    assert seen == [(LONGEST, 1)]


def test_a_model_that_sees_the_whole_image_still_does():
    image, own = noise(60 * LONGEST, 4), transform(resize_mode="squash")
    assert torch.equal(Preprocess(own)(image), own(image))
