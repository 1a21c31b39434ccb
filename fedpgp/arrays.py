"""Tensors as numpy arrays, as messages and checkpoints hold them, and back."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray]
"""Tensors by name, as they travel."""


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Return copies of the arrays as tensors on the CPU."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def to_arrays(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return the tensors as arrays of this precision."""
    return {name: tensor.to(dtype).cpu().numpy() for name, tensor in tensors.items()}
