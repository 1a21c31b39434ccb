"""A CLIP text tower, its weights folded for the prompted text encoder, and whether it can share
a prefix."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.model import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.towers.adapters import Folds
from fedpgp.towers.cuda_graphs import Graphs
from fedpgp.towers.folded import QUICK_GELU, Block, FoldedTower, double, fold_block, fold_norm


class TextTower(FoldedTower):
    """The folded weights of a causal CLIP text tower, shared by all encoders of a model.

    Matrix products run in ``compute`` precision; contexts, the residual stream, norms and features
    stay in ``dtype`` (the same, or float32 above bfloat16 products).

    Attributes:
        attention: of :data:`fedpgp.towers.attention.KINDS`, of encoders made from then on; None:
            by device (a class attribute, for benchmarks and tests).
    """

    attention: str | None = None

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype, compute: torch.dtype):
        self.dtype, self.compute, self.device = dtype, compute, clip.device
        self.width, self.context_length = clip.width, clip.context_length
        about = clip.cached("text tower", lambda: _about(clip.text_model))
        self.heads, self.eps = about["heads"], about["eps"]
        self.activation = F.silu if about["quick"] else F.gelu
        self.activation_factor = QUICK_GELU if about["quick"] else 1.0
        folded = clip.cached(
            f"text tower in {dtype} and {compute}",
            lambda: _fold(clip.text_model, dtype, compute, about["quick"]),
        )
        folded = {name: tensor.to(self.device) for name, tensor in folded.items()}
        self.blocks = [
            Block(**{field.name: folded[f"{i}.{field.name}"] for field in fields(Block)})
            for i in range(clip.text_blocks)
        ]
        self.projection, self.projection_bias = folded["projection"], folded["projection_bias"]
        self.positions = folded["positions"]
        self.graphs = Graphs()

    @classmethod
    def of(
        cls, clip: FrozenCLIP, dtype: torch.dtype | None, compute: torch.dtype | None
    ) -> "TextTower":
        """The tower of this model in these precisions (None: the model's, and the same), folded
        once."""
        towers = clip.__dict__.setdefault("text_towers", {})
        dtype = dtype or clip.dtype
        key = (dtype, compute or dtype)
        if key not in towers:
            towers[key] = cls(clip, *key)
        return towers[key]

    def folds(self, clip: FrozenCLIP) -> Folds:
        """What this tower of a model has in its weights beside the model's own."""
        norms = clip.cached("text norms", lambda: _norms(clip.text_model))
        gains, shifts = (norms[name].to(self.device, self.dtype) for name in ("gains", "shifts"))
        head_scale = (self.width // self.heads) ** -0.5
        return Folds(gains, shifts, head_scale, self.activation_factor)


def _about(text: nn.Module) -> dict:
    """A tower's settings that no weight shows."""
    block = text.transformer.resblocks[0]
    quick = not isinstance(block.mlp.gelu, nn.GELU)
    return {"heads": block.attn.num_heads, "eps": block.ln_1.eps, "quick": quick}


def _norms(text: nn.Module) -> dict[str, Tensor]:
    """Scales and shifts of each block's two norms, (blocks, 2, d) float64 on the CPU."""
    pairs = [(block.ln_1, block.ln_2) for block in text.transformer.resblocks]
    return {
        "gains": torch.stack([torch.stack([double(n.weight) for n in pair]) for pair in pairs]),
        "shifts": torch.stack([torch.stack([double(n.bias) for n in pair]) for pair in pairs]),
    }


def _fold(
    text: nn.Module, dtype: torch.dtype, compute: torch.dtype, quick: bool
) -> dict[str, Tensor]:
    """The folded weights of a tower, on the CPU: each block's as ``"<number>.<name>"``,
    and what is around them."""
    folded: dict[str, Tensor] = {}
    for i, block in enumerate(text.transformer.resblocks):
        folded |= {
            f"{i}.{name}": tensor
            for name, tensor in fold_block(block, QUICK_GELU if quick else 1.0).items()
        }
    if isinstance(text.text_projection, nn.Linear):
        projection, bias = double(text.text_projection.weight), double(text.text_projection.bias)
    else:
        projection, bias = double(text.text_projection).T, 0
    folded["projection"], shift = fold_norm(text.ln_final, projection, 0)
    folded["projection_bias"] = bias + shift
    folded = {
        name: tensor.detach().cpu().to(compute).contiguous() for name, tensor in folded.items()
    }
    return {**folded, "positions": text.positional_embedding.detach().cpu().to(dtype)}


def why_not_shared(text: nn.Module) -> str | None:
    """Why an open_clip text tower cannot share a prefix; None when it can."""
    blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if blocks is None or not isinstance(getattr(blocks[0], "attn", None), nn.MultiheadAttention):
        return "its blocks are not CLIP's"
    if getattr(text, "attn_mask", None) is None:
        return "it is not causal"
    if pool != "argmax":
        return f"its feature is read at {pool!r}, not at the end-of-text token"
    activation = blocks[0].mlp.gelu
    quick = isinstance(activation, import_open_clip().transformer.QuickGELU)
    if not quick and getattr(activation, "approximate", None) != "none":
        return f"its activation is {activation}"
    if not isinstance(blocks[0].ls_1, nn.Identity) or getattr(text, "cls_emb", None) is not None:
        return "it has layer scales or a class embedding"
    if text.text_projection is None:
        return "it has no text projection"
    return None
