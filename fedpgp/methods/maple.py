"""MaPLe, federated: text prompts, and image prompts that are linear in them (Khattak et al., CVPR
2023, arXiv 2210.03117).

    t_0..t_J-1 (m, d)         text prompts: the context, and m for each of the next blocks of the
                              text tower
    v_l = t_l W_l^T + b_l     image prompts of block l; W_1 = W_2 = ... at the start
    y   = s cos(f(patches, v), g(t))

Prompts and couplings are shared. m is n_ctx here, for both towers.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedpgp.errors import check_number
from fedpgp.layers import linear_start
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, register
from fedpgp.methods.vpt import VPT
from fedpgp.prompts import normal, starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.towers.image import check_depth


@dataclass(frozen=True)
class MaPLeSettings:
    """Settings of MaPLe.

    Attributes:
        depth: J, blocks with prompts, in both towers.
    """

    depth: int = 9

    def __post_init__(self):
        check_number("method.depth", self.depth, least=1, whole=True)


@register("maple")
class MaPLe(VPT):
    """Shared: t (J, m, d), W (J, W, d), b (J, W). Nothing personal."""

    about = About(
        title="MaPLe",
        paper="Khattak et al., CVPR 2023",
        family="prompt_learning",
        learns=("text prompts", "image prompts"),
        shared="deep text prompts, couplings",
        sent="depth*(m*d + d*W + W)",
        official="exact (run): muzairkhattak/multimodal-prompt-learning at 69bce21",
        model="tiny_vit",
        order=27,
    )
    per_image = "copies"
    small = {"depth": 2}
    Settings = MaPLeSettings
    no_class_embeddings = ""

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**deep_text_prompts(self.task, self.settings.depth, rng), **self._coupling(rng)}

    def _coupling(self, rng: np.random.Generator) -> Params:
        """Linear layers as torch starts them: the first one's own, and one for all further
        blocks."""
        depth, width = self.settings.depth, self.task.clip.width
        check_depth("method.depth", depth, self.tower.depth, "image")
        layers = [linear_start("layer", self.tower.width, width, rng) for _ in range(min(depth, 2))]
        layers += layers[1:] * (depth - 2)
        return {
            "W": torch.stack([x["layer.weight"] for x in layers]),
            "b": torch.stack([x["layer.bias"] for x in layers]),
        }

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        v = shared["t"] @ shared["W"].mT + shared["b"].unsqueeze(-2)
        return {"v": v, "texts": classes.encoder(self.task.n_ctx).encode_deep(shared["t"])}

    @classmethod
    def settings_of(cls, blocks: int):
        return cls.Settings(depth=min(9, blocks))

    def step_work(self, size: StepSize) -> Work:
        depth = self.settings.depth
        return size.texts(depth=depth) + size.through_image_tower(self.task.n_ctx, depth=depth)


def deep_text_prompts(task, depth: int, rng: np.random.Generator) -> Params:
    """``t`` (depth, m, d): the starting context, then N(0, 0.02²) for each further
    block of the text tower."""
    check_depth("method.depth", depth, task.clip.text_blocks, "text")
    first = starting_context(task.clip, task.n_ctx, task.context_init, rng)
    return {"t": torch.cat([first.unsqueeze(0), normal((depth - 1, *first.shape), rng)])}
