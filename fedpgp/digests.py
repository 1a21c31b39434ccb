"""Checksums of what is kept in files."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensor_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a text and of every tensor's name, shape and bytes (on the CPU,
    contiguous)."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
