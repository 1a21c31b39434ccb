"""What a model's own evaluation transform does not do: cut an image that is a line."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

LONGEST = 50
"""Lengths of the short side that are kept of the long one; no photo has more."""


class Preprocess:
    """The evaluation transform of a model, for images of any shape.

    Most models see the central square of an image whose short side was brought to their size. Of an
    image of 30,000 x 1 pixels that is 6.7 million columns, of which all but 224 are cut off. Here
    most of them are cut off before.

    Args:
        transform: PIL image -> (3, R, R) tensor.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]):
        self._transform = transform
        kinds = {type(step).__name__: step for step in getattr(transform, "transforms", ())}
        size = getattr(kinds.get("Resize"), "size", None)
        short_side = isinstance(size, int) or (size is not None and len(size) == 1)
        self._sees_center = short_side and "CenterCrop" in kinds

    def __call__(self, image: Image.Image) -> Tensor:
        most = LONGEST * min(image.size)
        if self._sees_center and max(image.size) > most:
            left, top = (max(0, (side - most) // 2) for side in image.size)
            image = image.crop((left, top, image.width - left, image.height - top))
        return self._transform(image)

    def __repr__(self) -> str:
        return repr(self._transform)
