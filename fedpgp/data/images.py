"""How an image is opened: the same way by every reader, in training, evaluation and ``predict``."""

import contextlib
import io
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fedpgp.errors import FedPGPError, check_number, unknown

log = logging.getLogger(__name__)

_large_one = threading.Lock()

VERSION = "2"
"""Part of the fingerprint of people's images: raise it when the same file gives other pixels
than before, so that no cache serves features of the old ones. (1: as stored; 2: upright, on a
ground, deep grey alike.)"""

NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow knows by name and cannot decode by itself."""

LARGE = 2**25
"""Pixels of an image that is decoded alone."""

STRIP = 2**22
"""Pixels of an image that are computed at a time."""

BACKGROUNDS = ("white", "none")
DEEP = (0.0, 65535.0)
"""Black and white of grey images of 16 bits."""


@dataclass(frozen=True)
class Reading:
    """How the images of a data set are read.

    Attributes:
        background: what lies under transparent pixels: ``white``, or ``none``, the colour
            that the file has there.
        grey_range: values of 16-bit and float grey that become black and white. None: 0 and 65535
            for whole numbers; a image of float values, or of whole numbers beyond these, is scaled
            by its own finite values.
    """

    background: str = "white"
    grey_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, options: Mapping[str, object]) -> "Reading":
        """From the options of a data set: ``background`` and ``grey_range``, where it has them.

        Raises:
            FedPGPError: a value that cannot work.
        """
        background, limits = options.get("background", cls.background), options.get("grey_range")
        if background not in BACKGROUNDS:
            raise FedPGPError(unknown("dataset.background", background, BACKGROUNDS))
        if limits is None:
            return cls(background)
        if not isinstance(limits, Sequence) or isinstance(limits, str) or len(limits) != 2:
            raise FedPGPError(
                f"dataset.grey_range={limits!r} cannot work; it is [BLACK,WHITE], such as [0,4095]"
            )
        low, high = limits
        check_number("dataset.grey_range[0]", low)
        check_number("dataset.grey_range[1]", high, above=low)
        return cls(background, (float(low), float(high)))

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same file gives other pixels."""
        return f"{VERSION} {self.background} {self.grey_range}"

    def record(self) -> dict:
        """What somebody has to know who reads images for an exported classifier; for JSON."""
        return {"orientation": "exif", **asdict(self)}


PUBLISHED = Reading(background="none")
"""Published data sets are read as the code of their papers reads them."""


class TooManyPixels(ValueError):
    """An image with more pixels than are decoded."""


def read_image(
    source: Path | str | bytes, reading: Reading = PUBLISHED, most_pixels: int | None = None
) -> Image.Image:
    """An image as RGB, upright: turned and mirrored as its EXIF orientation says.

    Args:
        source: a file, or its content.
        reading: what becomes of transparent pixels and of deep grey.
        most_pixels: that are decoded; None leaves it to Pillow, which takes 179 million.

    Raises:
        TooManyPixels: it says that it has more; none of them is decoded.
        Exception: whatever Pillow's decoders raise for a broken image, each in its own way.
    """
    _silence_pillow()
    if not isinstance(source, bytes):
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # would be waited for without end
            raise ValueError("it is no file, but a pipe, a socket or a device")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(file, formats=readable_formats()) as image, _room(image):
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise TooManyPixels(
                f"it has {image.width}x{image.height} pixels, more than {most_pixels:,}"
            )
        image.load()
        # Damaged metadata cost an image nothing: what fails is writing them anew, after
        # the pixels are turned.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return as_rgb(image, reading)


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that this machine's Pillow decodes by itself, whatever a file's name says: EPS
    would be a program that Ghostscript runs."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in NO_DECODER)


def _room(image: Image.Image) -> contextlib.AbstractContextManager:
    """Let one large image of this process be decoded at a time: a small file may unpack to a
    hundred million pixels."""
    return _large_one if image.width * image.height > LARGE else contextlib.nullcontext()


def as_rgb(image: Image.Image, reading: Reading) -> Image.Image:
    """RGB of an image of any mode.

    Raises:
        ValueError: a float image without a finite value; a mode that Pillow cannot convert.
    """
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image, reading.grey_range).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgb = Image.new("RGB", image.size)
        for box in _strips(image):
            rgb.paste(_on_ground(image.crop(box), reading), box)
        return rgb
    return image.convert("RGB")


def _on_ground(image: Image.Image, reading: Reading) -> Image.Image:
    """RGB of an image with transparent pixels."""
    rgba = image.convert("RGBA")
    if reading.background != "white":
        return rgba.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(rgba)
    return ground.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover an image from top to bottom: what is computed of one takes little memory."""
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _eight_bits(image: Image.Image, limits: tuple[float, float] | None) -> Image.Image:
    """8-bit grey of an image of 16-bit, 32-bit or float values, which Pillow would cut off at
    255."""
    least, most = _finite_range(image)
    if limits is None:
        deep = image.mode != "F" and DEEP[0] <= least and most <= DEEP[1]
        limits = DEEP if deep else (least, most)
        if deep and 0 < most <= DEEP[1] / 15:
            _tell_dark()
    low, high = limits
    grey = Image.new("L", image.size)
    for box in _strips(image):
        values = np.asarray(image.crop(box), dtype=np.float64)
        scaled = np.where(np.isfinite(values), (values - low) / max(high - low, 1e-12), 0)
        grey.paste(Image.fromarray(np.uint8(np.round(255 * np.clip(scaled, 0, 1)))), box)
    return grey


def _finite_range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest finite value of an image.

    Raises:
        ValueError: it has none.
    """
    least, most = math.inf, -math.inf
    for box in _strips(image):
        values = np.asarray(image.crop(box), dtype=np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if least > most:
        raise ValueError("none of its pixels is a finite number")
    return least, most


@cache
def _tell_dark() -> None:
    log.warning(
        "an image of 16 bits has no value above %d, so it is nearly black; if all are like it, set "
        "dataset.grey_range=[0,4095] (12 bits) or what their white is",
        DEEP[1] // 15,
    )


@cache
def _silence_pillow() -> None:
    """Keeps Pillow's remarks on metadata, palettes and sizes off the terminal; what is wrong with
    an image that cannot be read is in the error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
