"""The pictures of a request: read in memory, within limits, under no name of a file."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fedpgp.data.images import Reading, TooManyPixels, read_image
from fedpgp.plain_text import one_line

FORM = "multipart/form-data"

LONGEST_SIDE = 100
"""Times the shorter side: a model reads a picture whose shorter side has been made its own size."""

_ADDRESS = re.compile(r"<[^>]* at 0x[0-9a-f]+>")
"""How Python writes an object that has no name, in Pillow's errors."""


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        bytes: of its body.
        pictures: in it.
        pixels: of a picture, width times height.
        seconds: until its body is there.
    """

    bytes: int = 16 * 2**20
    pictures: int = 32
    pixels: int = 50_000_000
    seconds: float = 30.0


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        why: in words, for the one who sent it.
    """

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status, self.why = status, why


async def read_pictures(request: Request, limits: Limits) -> list[bytes]:
    """Return the files of a request: those of its form, or its body.

    Args:
        request: ``multipart/form-data`` with a file each, or any other body, which is one file.
        limits: of it.

    Raises:
        Refused: too large, too slow, too many, or no file at all.
    """
    body = await _body(request, limits)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        pictures = await _files(request.headers, body, limits)
    else:
        pictures = [body] if body else []
    if not pictures:
        raise Refused(
            422, "there is no picture: send one as the body, or several as files of a form"
        )
    return pictures


async def _body(request: Request, limits: Limits) -> bytes:
    too_large = Refused(413, f"the body is larger than {limits.bytes} bytes")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > limits.bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.bytes:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body was not there after {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    return bytes(body)


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write a larger file to the disk."""

    def __init__(self, headers: Headers, body: bytes, limits: Limits):
        async def stream() -> AsyncIterator[bytes]:
            yield body

        self.spool_max_size = limits.bytes + 1
        super().__init__(headers, stream(), max_files=limits.pictures, max_fields=limits.pictures)


async def _files(headers: Headers, body: bytes, limits: Limits) -> list[bytes]:
    try:
        form = await _InMemory(headers, body, limits).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise Refused(413, f"there are more than {limits.pictures} files") from None
        raise Refused(400, f"the form cannot be read: {one_line(error.message)}") from None
    except (ValueError, LookupError) as error:  # of python-multipart, and of a charset
        raise Refused(400, f"the form cannot be read: {one_line(str(error))}") from None
    return [await file.read() for _, file in form.multi_items() if isinstance(file, UploadFile)]


def opened(picture: bytes, number: int, reading: Reading, limits: Limits) -> Image.Image:
    """Return a picture as RGB.

    Args:
        picture: the content of its file.
        number: which one of its request, from 1.
        reading: how the run's images are read.
        limits: of it.

    Raises:
        Refused: it cannot be read; says why.
    """
    try:
        image = read_image(picture, reading, most_pixels=limits.pixels)
        if max(image.size) > LONGEST_SIDE * min(image.size):
            raise TooManyPixels(f"a side is more than {LONGEST_SIDE} times as long as the other")
        return image
    except UnidentifiedImageError:
        why = "it has no format of an image that is known here"
    except TooManyPixels as error:
        why = str(error)
    except MemoryError:
        why = "it takes more memory than there is"
    except Exception as error:  # each decoder fails in its own way
        why = one_line(_ADDRESS.sub("", (str(error).strip().splitlines() or [""])[0]), 200)
        why = why or type(error).__name__
    raise Refused(422, f"picture {number} cannot be read: {why}")
