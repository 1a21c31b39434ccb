"""Gaussian noise, secret unless it is to be repeated."""

import numpy as np
import torch
from torch import Tensor

from fedpgp.seeding import secret_normal


def standard_normal(shape: tuple[int, ...], seeded: np.random.Generator | None) -> Tensor:
    """Return standard normal numbers, float64.

    Args:
        shape: of the tensor.
        seeded: where they come from. None: the operating system's cryptographic source, so that
            nobody can draw them again.
    """
    draws = secret_normal(shape) if seeded is None else seeded.normal(size=shape)
    return torch.from_numpy(draws)
