"""Images too large to hold: looked up by position when a batch needs them, like rows of a tensor."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedpgp.data.base import Split

KEPT_BYTES = 2**30
"""Preprocessed pictures of one split that are kept in memory, so that they are not decoded anew every epoch."""


class Rows:
    """Rows of an array that stays on disk (memory-mapped).

    Args:
        array: (N, ...).
        device, dtype: of the tensors given out.
    """

    def __init__(self, array: np.ndarray, device: torch.device, dtype: torch.dtype):
        self.array, self.device, self.dtype = array, device, dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        """Positions (...) -> (..., *row)."""
        return torch.from_numpy(np.array(self.array[index.cpu().numpy()])).to(self.device, self.dtype)


class Pictures:
    """Preprocessed pictures of a split, decoded when they are asked for.

    Args:
        split: N pictures.
        preprocess: PIL image -> (3, R, R).
        device, dtype: of the tensors given out.
    """

    def __init__(
        self, split: Split, preprocess: Callable[[Image.Image], Tensor], device: torch.device, dtype: torch.dtype
    ):
        self.split, self.preprocess, self.device, self.dtype = split, preprocess, device, dtype
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, index: Tensor) -> Tensor:
        """Positions (...) -> (..., 3, R, R)."""
        wanted = index.flatten().tolist()
        missing = sorted(set(wanted) - set(self._kept))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            decoded = dict(zip(missing, pool.map(lambda i: self.preprocess(self.split.image(i)), missing), strict=True))
        pixels = torch.stack([self._kept[i] if i in self._kept else decoded[i] for i in wanted])
        if (len(self._kept) + len(decoded)) * pixels[0].nbytes <= KEPT_BYTES:
            self._kept.update(decoded)
        return pixels.to(self.device, self.dtype).view(*index.shape, *pixels.shape[1:])
