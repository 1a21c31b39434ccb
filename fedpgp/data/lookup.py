"""Images too large to hold: looked up by index when a batch needs them, like rows of a tensor."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedpgp.data.base import Split

KEPT_BYTES = 2**30
"""Preprocessed images of one split that are kept in memory, so that they are not
decoded anew every epoch."""

ENCODE_CHUNK = 128
"""Images in one pass through the image tower."""


class MappedFeatures:
    """Features in an array that stays on disk (memory-mapped).

    Args:
        array: (N, ...).
        device, dtype: of the tensors given out.
    """

    def __init__(self, array: np.ndarray, device: torch.device, dtype: torch.dtype):
        self.array, self.device, self.dtype = array, device, dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        """Indices (...) -> (..., *row)."""
        return torch.from_numpy(np.array(self.array[index.cpu().numpy()])).to(
            self.device, self.dtype
        )


@dataclass(frozen=True)
class PartialFeatures:
    """Features of some of N images.

    Attributes:
        values: (n, ...).
        indices: of the n images among the N, ascending.
        size: N.
    """

    values: np.ndarray
    indices: np.ndarray
    size: int


class SubsetLookup:
    """Values of some of N images, looked up by their indices among the N. Any other index is out of
    range.

    Args:
        subset: the n values, looked up from 0 to n - 1.
        indices: theirs among the N.
        size: N.
        device: of the indices that are asked for.
    """

    def __init__(
        self,
        subset: "Tensor | MappedFeatures",
        indices: np.ndarray,
        size: int,
        device: torch.device,
    ):
        place = torch.full((size,), size)
        place[torch.from_numpy(indices)] = torch.arange(len(indices))
        self.subset, self.place = subset, place.to(device)

    def __getitem__(self, index: Tensor | np.ndarray) -> Tensor:
        """Indices (...) -> (..., *row)."""
        return self.subset[self.place[index]]


class DecodedImages:
    """Preprocessed images of a split, decoded when they are asked for.

    Args:
        split: N images.
        preprocess: PIL image -> (3, R, R).
        device, dtype: of the tensors given out.
        keep: bytes of preprocessed images that stay in memory.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Callable[[Image.Image], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        keep: int = KEPT_BYTES,
    ):
        self.split, self.preprocess, self.device, self.dtype, self.keep = (
            split,
            preprocess,
            device,
            dtype,
            keep,
        )
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, index: Tensor) -> Tensor:
        """Indices (...) -> (..., 3, R, R)."""
        wanted = index.flatten().tolist()
        missing = sorted(set(wanted) - set(self._kept))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            decoded = dict(
                zip(
                    missing,
                    pool.map(lambda i: self.preprocess(self.split.image(i)), missing),
                    strict=True,
                )
            )
        pixels = torch.stack([self._kept[i] if i in self._kept else decoded[i] for i in wanted])
        if (len(self._kept) + len(decoded)) * pixels[0].nbytes <= self.keep:
            self._kept.update(decoded)
        return pixels.to(self.device, self.dtype).view(*index.shape, *pixels.shape[1:])


class LiveFeatures:
    """Features of images that are encoded whenever they are asked for.

    Args:
        images: indices (...) -> (..., 3, R, R).
        encode: (B, 3, R, R) -> (B, *row).
        dtype: of the tensors given out.
    """

    def __init__(
        self, images: DecodedImages, encode: Callable[[Tensor], Tensor], dtype: torch.dtype
    ):
        self.images, self.encode, self.dtype = images, encode, dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        """Indices (...) -> (..., *row)."""
        encoded = torch.cat(
            [self.encode(chunk) for chunk in self.images[index.flatten()].split(ENCODE_CHUNK)]
        )
        return encoded.to(self.dtype).view(*index.shape, *encoded.shape[1:])


class AugmentedViews:
    """Several views of the same N images, one behind the other: index ``v * N + i`` is view v of
    image i.

    Args:
        source: view -> what its N images are looked up in.
        size: N.
    """

    def __init__(
        self,
        source: "Callable[[int], Tensor | MappedFeatures | SubsetLookup | DecodedImages | "
        "LiveFeatures]",
        size: int,
    ):
        self.source, self.size = source, size

    def __getitem__(self, index: Tensor) -> Tensor:
        """Indices (...) -> (..., *row)."""
        views, rows = index.flatten() // self.size, index.flatten() % self.size
        order = views.argsort(stable=True)
        found = [
            self.source(int(view))[rows[order][views[order] == view]] for view in views.unique()
        ]
        return torch.cat(found)[order.argsort()].view(*index.shape, *found[0].shape[1:])
