"""Checksums of what is kept in files, and of what names them: SHA-256, as hexadecimal text."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def digest(*parts: str | bytes) -> str:
    """Digest of texts (UTF-8) and bytes, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def tensor_digest(text: str, tensors: "Mapping[str, Tensor | np.ndarray]") -> str:
    """Digest of a text and of every tensor's name, shape and bytes, and of an array's type.

    Args:
        text: what stands beside the tensors.
        tensors: PyTorch tensors on the CPU, or NumPy arrays; contiguous.
    """
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, np.ndarray):
            found.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
            found.update(tensor.tobytes())
        else:
            import torch  # not needed by who has arrays alone

            found.update(f"{name} {tuple(tensor.shape)} ".encode())
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
