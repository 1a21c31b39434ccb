"""Training augmentation as CoOp has it: a random resized crop and a random mirroring
(Zhou et al., IJCV 2022).

A view is an augmented copy of an image. What view ``v`` of image ``i`` looks like depends on (v,
i) alone, so views can be encoded once and kept like plain features, and every run, seed and
worker sees the same ones.
"""

import math
from functools import cached_property

import numpy as np
from PIL import Image

from fedpgp.data.base import Split
from fedpgp.digests import digest
from fedpgp.seeding import generator

AREA = (0.08, 1.0)
"""Fraction of the image that a crop takes."""

RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop."""

TRIES = 10
"""Draws of a crop that fits before the whole image's middle is taken."""


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random part of the image, scaled to (size, size), mirrored half of the time.

    Area is uniform in :data:`AREA`, the logarithm of the aspect ratio uniform in :data:`RATIO`
    (Szegedy et al., CVPR 2015).
    """
    width, height = image.size
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


class AugmentedSplit(Split):
    """One augmented view of every image of a split.

    Args:
        split: N images.
        view: which one, from 0.
        size: side of the square images, in pixels: the model's input.
    """

    def __init__(self, split: Split, view: int, size: int):
        super().__init__(split.labels, split.domains)
        self.split, self.view, self.size = split, view, size

    def describe(self, i: int) -> str:
        return self.split.describe(i)

    @cached_property
    def fingerprint(self) -> str:
        drawn = (
            f"{self.split.fingerprint} view {self.view} of {self.size} pixels, area {AREA}, "
            f"ratio {RATIO}"
        )
        return digest(drawn)

    def _open(self, i: int) -> Image.Image:
        return random_resized_crop(
            self.split.image(i), self.size, generator(0, "view", self.view, i)
        )
