"""The transformer blocks of a frozen CLIP tower, with their constants folded into their linear
layers.

LayerNorm's scale and shift, the 1/sqrt(head) of the queries and QuickGELU's two factors
go into the neighbouring
weights: exact, and it leaves less to compute and to keep for the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.towers.adapters import Adapters

QUICK_GELU = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


@dataclass(frozen=True)
class Block:
    """One block: ``x + out(attention(in(normalized x)))``, and
    ``+ proj(activation(fc(normalized)))`` of that."""

    in_weight: Tensor  # (3d, d)
    in_bias: Tensor
    out_weight: Tensor  # (d, d)
    out_bias: Tensor
    fc_weight: Tensor  # (4d, d)
    fc_bias: Tensor
    proj_weight: Tensor  # (d, 4d)
    proj_bias: Tensor


HIDDEN_BYTES = 31 * 2**20
"""What the hidden layer of a pass may take on a CPU. glibc gives a block of more than 32 MiB back
to the kernel when it is freed and gets the next one page by page, each cleared anew: several passes
below that are faster than one above."""


class FoldedTower:
    """What the towers have in common.

    Attributes:
        blocks: the folded blocks.
        eps: of the norms.
        activation: of the folded MLPs.
    """

    blocks: list[Block]
    eps: float
    activation: Callable[[Tensor], Tensor]

    def normalize(self, x: Tensor) -> Tensor:
        """LayerNorm without scale and shift (they are folded into what follows)."""
        return F.layer_norm(x, (x.shape[-1],), eps=self.eps)

    def chunk_size(self, sequences: int, tokens: int) -> int:
        """Return how many of the sequences, each of so many tokens, go through the blocks in
        one chunk: as many as :data:`HIDDEN_BYTES` holds, at least one, in chunks of about the
        same size. On a GPU all."""
        weight = self.blocks[0].fc_weight
        if weight.device.type != "cpu":
            return max(1, sequences)
        most = max(1, HIDDEN_BYTES // (tokens * len(weight) * weight.element_size()))
        chunks = max(1, math.ceil(sequences / most))
        return max(1, math.ceil(sequences / chunks))

    def mlp(self, block: Block, x: Tensor) -> Tensor:
        """The second half of a block: (..., d) -> (..., d)."""
        hidden = self.activation(linear(self.normalize(x), block.fc_weight, block.fc_bias))
        return x + linear(hidden, block.proj_weight, block.proj_bias)

    def behind_attention(self, i: int, x: Tensor, attended: Tensor, adapters: Adapters) -> Tensor:
        """The output of the attention of block i and its MLP with low-rank adapters, each added to
        what it reads: x and attended (..., d) -> (..., d)."""
        block = self.blocks[i]
        out = linear(attended, block.out_weight, block.out_bias)
        x = x + adapters.add(i, ("out",), out, attended)
        normal = self.normalize(x)
        hidden = linear(normal, block.fc_weight, block.fc_bias)
        hidden = self.activation(adapters.add(i, ("fc",), hidden, normal))
        y = linear(hidden, block.proj_weight, block.proj_bias)
        return x + adapters.add(i, ("proj",), y, hidden)


def fold_block(block: nn.Module, activation_factor: float) -> dict[str, Tensor]:
    """The tensors of a :class:`Block`, float64 on the CPU.

    Args:
        block: of open_clip.
        activation_factor: :data:`QUICK_GELU` where silu takes the place of QuickGELU, else 1.
    """
    d, heads = block.attn.embed_dim, block.attn.num_heads
    in_weight, in_bias = fold_norm(
        block.ln_1, block.attn.in_proj_weight, double(block.attn.in_proj_bias)
    )
    head_scale = (d // heads) ** -0.5
    in_weight[:d] *= head_scale
    in_bias[:d] *= head_scale
    fc_weight, fc_bias = fold_norm(block.ln_2, block.mlp.c_fc.weight, double(block.mlp.c_fc.bias))
    return {
        "in_weight": in_weight,
        "in_bias": in_bias,
        "out_weight": double(block.attn.out_proj.weight),
        "out_bias": double(block.attn.out_proj.bias),
        "fc_weight": fc_weight * activation_factor,
        "fc_bias": fc_bias * activation_factor,
        "proj_weight": double(block.mlp.c_proj.weight) / activation_factor,
        "proj_bias": double(block.mlp.c_proj.bias),
    }


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer behind a norm, so that they take in the
    norm's scale and shift."""
    weight = double(weight)
    return weight * double(norm.weight), bias + weight @ double(norm.bias)


def double(tensor: Tensor | None) -> Tensor | int:
    """On the CPU (some devices have no float64); no bias is 0."""
    return 0 if tensor is None else tensor.detach().cpu().double()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight.T + bias`` in the precision of the weight."""
    return F.linear(x.to(weight.dtype), weight, bias)
