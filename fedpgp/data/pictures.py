"""How a picture is opened: the same way by every reader, in training, evaluation and ``predict``."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

VERSION = "2"
"""Part of the fingerprint of people's pictures: raise it when the same file gives other pixels than before, so that no
cache serves features of the old ones. (1: as stored; 2: upright.)"""


def read_picture(source: Path | str | bytes) -> Image.Image:
    """A picture as RGB, upright: turned and mirrored as its EXIF orientation says.

    Args:
        source: a file, or its content.

    Raises:
        Exception: whatever Pillow's decoders raise for a broken picture, each in its own way.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    # Damaged metadata cost a picture nothing: what fails is writing them anew, after the pixels are turned.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """RGB of a picture of any mode; 16-bit and float grey is scaled by its own range, where PIL would clip it."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray(np.uint8(np.round(255 * (values - low) / max(high - low, 1e-12))))
    return image.convert("RGB")
