"""CLIP's vision transformer with the clients' prompts among its tokens and their adapters at its
blocks.

The weights are frozen; prompts and adapters carry the client axis. Every client's images go through
in one batch. Image features cannot be cached for such methods, and the tower is most of their cost.
"""

import copy
import re
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.conv_stem import convolution_gflop
from fedpgp.clip.model import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError
from fedpgp.towers.adapters import Adapters, Folds
from fedpgp.towers.cuda_graphs import Graphs
from fedpgp.towers.folded import QUICK_GELU, Block, FoldedTower, fold_block, linear


class ImageTower(FoldedTower):
    """The image tower of a model, in one precision.

    Args:
        clip: the frozen model.
        dtype: of the computation.
        method: who asks, for the error.

    Raises:
        FedPGPError: the image tower is not a CLIP ViT.
    """

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype, method: str):
        tower = clip.model.visual
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
        if (
            blocks is None
            or getattr(tower, "pool_type", None) != "tok"
            or getattr(tower, "attn_pool", None) is not None
            or not isinstance(getattr(blocks[0], "attn", None), nn.MultiheadAttention)
            or not isinstance(blocks[0].ls_1, nn.Identity)
        ):
            raise FedPGPError(
                f"method={method} works inside the image tower, which {type(tower).__name__} "
                "does not allow: it needs a CLIP vision transformer (model=tiny_vit, vit_b16, "
                "vit_b32, vit_l14 ...)"
            )
        self.dtype, self.heads, self.eps = dtype, blocks[0].attn.num_heads, blocks[0].ln_1.eps
        quick = isinstance(blocks[0].mlp.gelu, import_open_clip().transformer.QuickGELU)
        self.activation = F.silu if quick else blocks[0].mlp.gelu
        self.activation_factor = QUICK_GELU if quick else 1.0
        self.blocks = []
        for block in blocks:
            folded = fold_block(block, QUICK_GELU if quick else 1.0)
            self.blocks.append(
                Block(**{name: tensor.to(clip.device, dtype) for name, tensor in folded.items()})
            )
        self.weights = {
            name: tensor.detach().to(dtype)
            for name, tensor in tower.state_dict().items()
            if not re.search(r"^conv1\.|\.(attn|mlp)\.", name)
        }
        self.patches = copy.deepcopy(tower.conv1).to(dtype=dtype)
        self.side = clip.image_size
        self.depth, self.width, self.graphs = len(blocks), tower.conv1.out_channels, Graphs()
        self.tokens = 1 + tower.grid_size[0] * tower.grid_size[1]

    @cached_property
    def embedding_gflop(self) -> float:
        """GFLOP that make one image's tokens of its pixels."""
        return convolution_gflop(self.patches, self.side)

    def __call__(
        self,
        pixels: Tensor,
        prompts: Tensor | None = None,
        adapter: Callable[[int, Tensor], Tensor | None] | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """Image features.

        Args:
            pixels: preprocessed images, (K, B, 3, R, R).
            prompts: (K, depth, n, W). The first n stand behind the patches; at the input of block l
                < depth their outputs are replaced by the l-th ones.
            adapter: ``adapter(l, x)`` is added to the output of block l (from 0); x (K, B *
                tokens, W) is its input (in the last block the class tokens alone), each token by
                itself. None adds nothing.
            adapters: low-rank ones, of the K clients.

        Returns:
            unit norm, (K, B, e).
        """
        return self.encode(self.embed(pixels), prompts, adapter, adapters)

    def values(self, images: int) -> int:
        """Return tokens x W x blocks of so many images."""
        return images * self.tokens * self.width * self.depth

    def embed(self, pixels: Tensor) -> Tensor:
        """[CLS, patches] with their positions, before the first norm: (K, B, 3, R, R)
        -> (K, B, tokens, W)."""
        w = self.weights
        x = self.patches(pixels.flatten(0, 1).to(self.dtype)).flatten(2).transpose(1, 2)
        x = (
            torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], dim=1)
            + w["positional_embedding"]
        )
        return x.view(*pixels.shape[:2], *x.shape[1:])

    def encode(
        self,
        x: Tensor,
        prompts: Tensor | None = None,
        adapter: Callable[[int, Tensor], Tensor | None] | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """Return image features from what :meth:`embed` gives, as the call does; on a
        CPU in chunks of images."""
        if adapter is not None:  # it may read what is not among its arguments
            return self._in_chunks(x, prompts, adapter, adapters)
        more = [] if prompts is None else [prompts]
        flat = [] if adapters is None else adapters.flat

        def of(x: Tensor, *rest: Tensor) -> Tensor:
            ours = None if adapters is None else adapters.with_values(rest[len(more) :])
            return self._in_chunks(x, rest[0] if more else None, None, ours)

        variant = len(more), None if adapters is None else adapters.names
        return self.graphs.record_more(self, of, x, *more, *flat, variant=variant)

    def _in_chunks(
        self,
        x: Tensor,
        prompts: Tensor | None,
        adapter: Callable[[int, Tensor], Tensor | None] | None,
        adapters: Adapters | None,
    ) -> Tensor:
        """Run :meth:`_encode` in chunks of images where one pass would be too large (on a CPU)."""
        clients, images, tokens, _ = x.shape
        size = self.chunk_size(
            images, clients * (tokens + (0 if prompts is None else prompts.shape[2]))
        )
        if images <= size:
            return self._encode(x, prompts, adapter, adapters)
        return torch.cat(
            [self._encode(chunk, prompts, adapter, adapters) for chunk in x.split(size, dim=1)],
            dim=1,
        )

    def _encode(
        self,
        x: Tensor,
        prompts: Tensor | None,
        adapter: Callable[[int, Tensor], Tensor | None] | None,
        adapters: Adapters | None,
    ) -> Tensor:
        clients, images = x.shape[:2]
        x = x.flatten(0, 1)

        def of_block(block: int) -> Tensor:
            of_images = prompts[:, block].unsqueeze(1).expand(-1, images, -1, -1)
            return of_images.flatten(0, 1).to(self.dtype)

        count = 0 if prompts is None else prompts.shape[2]
        depth = 0 if prompts is None else prompts.shape[1]
        if count:
            x = torch.cat([x, of_block(0)], dim=1)
        x = self.norm("ln_pre", x) if "ln_pre.weight" in self.weights else x
        for block in range(self.depth):
            if 0 < block < depth:
                x = torch.cat([x, of_block(block)], dim=1)
            read = 1 if block + 1 == self.depth else x.shape[1] - count * (block + 1 < depth)
            before = x[:, :read]
            if adapters is None or block < adapters.first:
                x = self._block(self.blocks[block], x, read)
            else:
                x = self._adapted_block(block, x, read, adapters)
            added = (
                None if adapter is None else adapter(block, before.reshape(clients, -1, self.width))
            )
            if added is not None:
                x = x + added.view_as(x)
        features = self.norm("ln_post", x[:, 0]) @ self.weights["proj"]
        return F.normalize(features, dim=-1).view(clients, images, -1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A layer norm of the tower by name (``ln_pre``, ``ln_post``,
        ``transformer.resblocks.0.ln_1`` ...)."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def _block(self, block: Block, x: Tensor, read: int) -> Tensor:
        """(n, tokens, W) -> (n, read, W): the first tokens, all that the next block reads; the
        others are keys and values alone."""
        width, normal = self.width, self.normalize(x)
        q = linear(normal[:, :read], block.in_weight[:width], block.in_bias[:width])
        kv = linear(normal, block.in_weight[width:], block.in_bias[width:])
        mixed = self._attend(q, kv)
        return self.mlp(block, x[:, :read] + linear(mixed, block.out_weight, block.out_bias))

    def _adapted_block(self, i: int, x: Tensor, read: int, adapters: Adapters) -> Tensor:
        """As :meth:`_block`, with low-rank adapters."""
        block, width, normal = self.blocks[i], self.width, self.normalize(x)
        asking = normal[:, :read]
        q = linear(asking, block.in_weight[:width], block.in_bias[:width])
        kv = linear(normal, block.in_weight[width:], block.in_bias[width:])
        q, kv = adapters.add(i, ("q",), q, asking), adapters.add(i, ("k", "v"), kv, normal)
        return self.behind_attention(i, x[:, :read], self._attend(q, kv), adapters)

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """Queries (n, read, W), keys and values (n, tokens, 2 W) -> (n, read, W)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (q, *kv.chunk(2, dim=-1))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return mixed.transpose(1, 2).flatten(2)

    @cached_property
    def folds(self) -> Folds:
        """What this tower has in its weights beside the model's own."""
        pairs = [
            [self.weights[f"transformer.resblocks.{i}.ln_{n}.{part}"] for n in (1, 2)]
            for part in ("weight", "bias")
            for i in range(self.depth)
        ]
        stacked = torch.stack([torch.stack(pair) for pair in pairs])
        gains, shifts = stacked.view(2, self.depth, 2, self.width)
        head_scale = (self.width // self.heads) ** -0.5
        return Folds(gains, shifts, head_scale, self.activation_factor)


def check_depth(name: str, depth: int, blocks: int, tower: str) -> None:
    """Refuses prompts or adapters in more blocks than there are.

    Raises:
        FedPGPError: naming the setting.
    """
    if depth > blocks:
        raise FedPGPError(
            f"{name}={depth}: the {tower} tower of this model has {blocks} blocks; take no more (a "
            "run that did was made with another model of this name: it cannot be read here)"
        )
