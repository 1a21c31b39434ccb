"""Splits as an attacker trains on them: other labels, or a patch on the images."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from fedpgp.data.base import Split
from fedpgp.data.joint import Concat
from fedpgp.digests import digest

CELLS = 3
"""Cells of the patch's checkerboard, a side."""


class RelabelledSplit(Split):
    """A split's images under other labels; their features are those of the split.

    Args:
        split: N images.
        labels: N labels.
    """

    def __init__(self, split: Split, labels: Sequence[int] | np.ndarray):
        super().__init__(labels, split.domains)
        self.split = split

    def describe(self, i: int) -> str:
        return self.split.describe(i)

    @property
    def fingerprint(self) -> str:
        return self.split.fingerprint

    @property
    def signature(self) -> str:
        return self.split.signature

    def _open(self, i: int) -> Image.Image:
        return self.split._open(i)


def relabelled(split: Split, labels: np.ndarray) -> Split:
    """A split under other labels; each part of a joint one by itself, whose features are known."""
    if not isinstance(split, Concat):
        return RelabelledSplit(split, labels)
    parts = [
        RelabelledSplit(part, labels[start : start + len(part)] - offset)
        for part, start, offset in zip(split.parts, split.starts[:-1], split.offsets, strict=True)
    ]
    return Concat(parts, split.offsets)


class PatchedSplit(Split):
    """A split's images with a patch on each, all of one class.

    Args:
        split: N images.
        label: theirs.
        side: of the patch, in sides of the image's central square.
    """

    def __init__(self, split: Split, label: int, side: float):
        super().__init__(np.full(len(split), label), split.domains)
        self.split, self.side = split, side

    def describe(self, i: int) -> str:
        return self.split.describe(i)

    @cached_property
    def fingerprint(self) -> str:
        return digest(f"{self.split.fingerprint} {self._patch}")

    @cached_property
    def signature(self) -> str:
        return digest(f"{self.split.signature} {self._patch}")

    @property
    def _patch(self) -> str:
        return f"patch of {CELLS} by {CELLS} cells, side {self.side}"

    def _open(self, i: int) -> Image.Image:
        return patched(self.split._open(i), self.side)


def patched(image: Image.Image, side: float) -> Image.Image:
    """The image with a checkerboard of black and white in the lower right corner of its central
    square, which is what a model sees of it.

    Args:
        image: RGB.
        side: of the patch, in sides of that square.
    """
    width, height = image.size
    square = min(width, height)
    pixels = max(1, round(side * square))
    cells = 255 * (np.indices((CELLS, CELLS)).sum(0) % 2).astype(np.uint8)
    board = Image.fromarray(cells).resize((pixels, pixels), Image.Resampling.NEAREST)
    result = image.copy()
    result.paste(
        board.convert("RGB"), ((width + square) // 2 - pixels, (height + square) // 2 - pixels)
    )
    return result
