"""Images as the towers see them while they are trained: drawn in random styles and places, or
plain."""

import math

import torch
import torch.nn.functional as F

from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.precision import native_bfloat16

open_clip = import_open_clip()

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it natively; elsewhere it is slower than float32."""
    fast = native_bfloat16(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(fast))


def augment(
    images: torch.Tensor, size: int, flip: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Random drawing styles and positions.

    images: (B, 64, 64, 3) uint8 on white; flip: (B,) bool, whether an image may be mirrored.
    Returns (B, 3, size, size) float in [0, 1].
    """

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def chance(probability: float) -> torch.Tensor:
        return (rand(len(images), 1, 1, 1) < probability).float()

    batch = len(images)
    ink = 1 - images.permute(0, 3, 1, 2).float().div_(255)

    # drawing style, for a part of the images: outlined, line art, black and white
    order = torch.randperm(batch, generator=generator)
    outlined, line_art, hard, soft = order.split(
        [batch // 8, batch // 16, batch // 8, batch - 2 * (batch // 8) - batch // 16]
    )
    soft = soft[: batch // 6]
    for chosen in (outlined, line_art):
        grey = ink[chosen].mean(1, keepdim=True)
        edges = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
        edges = (edges * (2 + 4 * rand(len(chosen), 1, 1, 1))).clamp_(0, 1)
        ink[chosen] = (
            torch.maximum(ink[chosen], edges) if chosen is outlined else edges.expand(-1, 3, -1, -1)
        )
    threshold = 0.2 + 0.4 * rand(len(hard), 1, 1, 1)
    ink[hard] = torch.sigmoid((ink[hard].mean(1, keepdim=True) - threshold) * 25).expand(
        -1, 3, -1, -1
    )
    ink[soft] = F.avg_pool2d(ink[soft], 3, 1, 1)

    # colours
    mix = torch.eye(3) + chance(0.5)[..., 0] * 0.35 * torch.randn(batch, 3, 3, generator=generator)
    ink = torch.einsum("bij,bjhw->bihw", mix, ink)
    dull = chance(0.2)
    ink = ink * (1 - dull) + ink.mean(1, keepdim=True) * dull
    tint = chance(0.3)
    ink = ink * (1 - tint * rand(batch, 3, 1, 1) * 0.9)
    ink = ink.clamp_(1e-4, 1) ** torch.exp(
        chance(0.4) * 0.5 * torch.randn(batch, 1, 1, 1, generator=generator)
    )

    # position
    scale = torch.exp(
        torch.empty(batch).uniform_(math.log(0.75), math.log(1.3), generator=generator)
    )
    stretch = torch.exp(0.08 * torch.randn(batch, generator=generator))
    angle = 0.14 * torch.randn(batch, generator=generator)
    shear = 0.08 * torch.randn(batch, generator=generator)
    mirror = torch.where(flip & (rand(batch) < 0.5), -1.0, 1.0)
    shift = (rand(batch, 2) - 0.5) * 0.3
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([mirror * cos / scale / stretch, (shear - sin) / scale, shift[:, 0]], -1),
            torch.stack([mirror * sin / scale, cos / scale * stretch, shift[:, 1]], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    # paper: tinted, rarely dark; a hole
    paper = 1 - chance(0.2) * 0.3 * rand(batch, 3, 1, 1)
    image = (paper - ink * paper).clamp_(0, 1)
    inverted = chance(0.03)
    image = image * (1 - inverted) + (1 - image) * inverted
    centre, radius = rand(batch, 2) * size, rand(batch) * size * 0.2
    rows = torch.arange(size)
    hole = ((rows[None] - centre[:, :1]).abs() < radius[:, None])[:, None, :, None] & (
        (rows[None] - centre[:, 1:]).abs() < radius[:, None]
    )[:, None, None, :]
    return torch.where(hole & (chance(0.25) > 0), paper, image)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] → the model's input, channels last."""
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def plain(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 → normalized (B, 3, size, size), as the model's own
    preprocessing does it."""
    images = images.permute(0, 3, 1, 2).float().div_(255)
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return normalize(images)
