"""Clipping: scaling what is too long (McMahan et al. 2018, arXiv 1710.06963, "FlatClip")."""

from collections.abc import Mapping

import torch
from torch import Tensor


def norms(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return each client's L2 norm over all tensors together: name -> (K, ...) gives (K,)."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors.values()], dim=1).norm(
        dim=1
    )


def clipped(tensors: Mapping[str, Tensor], largest: float) -> tuple[dict[str, Tensor], Tensor]:
    """Scale each client's tensors together to an L2 norm of at most ``largest``.

    Args:
        tensors: name -> (K, ...).
        largest: above 0.

    Returns:
        The scaled tensors, and the norms before, (K,).
    """
    before = norms(tensors)
    factor = largest / before.clamp(min=largest)
    return {
        name: tensor * factor.view(-1, *[1] * (tensor.dim() - 1))
        for name, tensor in tensors.items()
    }, before
