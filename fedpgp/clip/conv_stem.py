"""A convolutional stem of a vision transformer: the first blocks of a network of timm, then a 1x1
convolution to the tokens' width (Xiao et al., NeurIPS 2021, arXiv 2106.14881).

A model's folder asks for it with ``conv_stem`` in its ``open_clip_config.json``, beside
``model_cfg``, where open_clip does not read it; ``vision_cfg.patch_size`` is then the pixels of one
token's side.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.torchvision_fix import import_open_clip

CHUNK = 64
"""Images in one pass: more of them leave the processor's cache."""

KINDS = {"network": str, "last": str, "enlarge": int}
"""What a folder says of its stem."""


class ConvStem(nn.Module):
    """What stands in the place of a ViT's ``conv1``: (B, 3, R, R) pixels -> (B, width, r, r).

    Args:
        network: a network of timm whose children run one after another (``regnetx_002``).
        last: its last block that is used: the child's name and the block's (``s4.b1``).
        enlarge: the images are enlarged so many times first (bilinear).
        width: of a token.

    Attributes:
        out_channels: ``width``, as of the convolution that it replaces.

    Raises:
        ValueError: timm has no such network, or the network no such block.
    """

    def __init__(self, network: str, last: str, enlarge: int, width: int):
        super().__init__()
        import_open_clip()  # before timm: it repairs torchvision where that is needed
        import timm

        if not timm.is_model(network):  # timm would look for it on the Hugging Face hub
            raise ValueError(f"conv_stem.network={network}: timm has no such network")
        self.network = _first_blocks(timm.create_model(network), last)
        with torch.no_grad():
            channels = self.network.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self.enlarge, self.out_channels = enlarge, width
        self.projection = nn.Conv2d(channels, width, kernel_size=1, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """What the projection reads: (B, 3, R, R) -> (B, channels, r, r)."""
        if self.enlarge != 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bilinear")
        return self.network(images.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        parts = [self.projection(self.features(part)) for part in images.split(CHUNK)]
        return torch.cat(parts)

    def extra_repr(self) -> str:
        return f"enlarge={self.enlarge}"


@torch.no_grad()
def convolution_gflop(module: nn.Module, side: int) -> float:
    """GFLOP of the convolutions of a module, itself one or with some in it, for one image with
    sides of so many pixels."""
    products = []

    def count(layer: nn.Module, _, output: Tensor) -> None:
        products.append(output[0, 0].numel() * layer.weight.numel())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    weight = layers[0].weight
    module(torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype))
    for hook in hooks:
        hook.remove()
    return 2 * sum(products) / 1e9


def read_stem(folder: Path) -> dict | None:
    """The ``conv_stem`` of a model's folder: the arguments of :class:`ConvStem` but for its width;
    None where it has none, or no configuration that can be read."""
    try:
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # open_clip says what is wrong
        return None
    return config.get("conv_stem") if isinstance(config, dict) else None


def put_stem(model: nn.Module, stem: dict) -> None:
    """Puts a stem with random weights into the place of a CLIP ViT's patch embedding.

    Raises:
        ValueError: the image tower has no patch embedding, or the stem does not fit it; says why.
    """
    visual = model.visual
    if not hasattr(visual, "class_embedding"):
        raise ValueError(
            f"conv_stem: the image tower {type(visual).__name__} has no patch embedding; a stem "
            "goes before a CLIP ViT"
        )
    kinds = {key: type(value) for key, value in stem.items()} if isinstance(stem, dict) else None
    if kinds != KINDS or stem["enlarge"] < 1:
        raise ValueError(
            f"conv_stem={json.dumps(stem)}: it takes network and last, which are names, and "
            "enlarge, a whole number from 1 on"
        )
    old = visual.conv1
    new = ConvStem(**stem, width=old.out_channels)
    with torch.no_grad():
        made = tuple(new.features(torch.zeros(1, 3, *visual.image_size)).shape[2:])
    if made != tuple(visual.grid_size):
        (rows, columns), (wanted, across) = made, visual.grid_size
        raise ValueError(
            f"conv_stem makes {rows}x{columns} tokens of an image; image_size and patch_size ask "
            f"for {wanted}x{across}"
        )
    visual.conv1 = new.to(old.weight.device, old.weight.dtype).train(model.training)


def _first_blocks(network: nn.Module, last: str) -> nn.Sequential:
    stage, _, block = last.partition(".")
    children = dict(network.named_children())
    inside = [name for name, _ in children.get(stage, nn.Module()).named_children()]
    if block not in inside:
        raise ValueError(f"conv_stem.last={last}: {type(network).__name__} has no such block")
    first = nn.Sequential()
    for name, child in children.items():
        if name == stage:
            kept = inside[: inside.index(block) + 1]
            blocks = [(inner, child.get_submodule(inner)) for inner in kept]
            first.add_module(name, nn.Sequential())
            for inner, part in blocks:
                first.get_submodule(name).add_module(inner, part)
            return first
        first.add_module(name, child)
    return first
