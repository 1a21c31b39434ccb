"""VPT, federated: prompts among the image tower's tokens, CLIP's own text (Jia et al., ECCV
2022, arXiv 2203.12119).

    x = f(patches, v)        shallow (depth 1): n prompts behind the patches
                             deep: block l < depth has n of its own, which replace the outputs of
                             those before
    y = s cos(x, z_C)        z_C: a hand-written template

All prompts are shared.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Images, Method, Params, cosine_logits, register
from fedpgp.prompts import normal
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text.templates import PLAIN
from fedpgp.towers.image import ImageTower, check_depth


@dataclass(frozen=True)
class VPTSettings:
    """Settings of VPT.

    Attributes:
        tokens: n, prompts of a block.
        depth: blocks with prompts of their own: 1 is shallow.
        text: ``plain`` ("a photo of a {class}.", as in public code) or the data set's ``template``.
    """

    tokens: int = 4
    depth: int = 9
    text: str = "plain"

    def __post_init__(self):
        check_number("method.tokens", self.tokens, least=1, whole=True)
        check_number("method.depth", self.depth, least=1, whole=True)
        check_choice("method.text", self.text, ("plain", "template"))


@register("vpt")
class VPT(Method):
    """Shared: v (depth, n, W). Nothing personal."""

    about = About(
        title="VPT",
        paper="Jia et al., ECCV 2022",
        family="prompt_learning",
        learns=("image prompts",),
        shared="image prompts, shallow or deep",
        sent="depth*tokens*W",
        passes="none",
        official=(
            "exact (run) with `method.text=plain`: muzairkhattak/multimodal-prompt-learning at "
            "69bce21"
        ),
        model="tiny_vit",
        order=28,
    )
    per_image = "copies"
    small = {"depth": 2}
    Settings = VPTSettings
    no_class_embeddings = "its class embeddings are frozen; clients send what they do to images"
    inputs = ("pixels",)

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    def init_shared(self, rng: np.random.Generator) -> Params:
        check_depth("method.depth", self.settings.depth, self.tower.depth, "image")
        return {"v": normal((self.settings.depth, self.settings.tokens, self.tower.width), rng)}

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        texts = (
            classes.template_features
            if self.settings.text == "template"
            else classes.features_of(PLAIN)
        )
        return {"v": shared["v"], "texts": texts.expand(len(shared["v"]), -1, -1)}

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        return cosine_logits(
            classifier["texts"], self.tower(images.pixels, classifier["v"]), self.task.logit_scale
        )

    @classmethod
    def settings_of(cls, blocks: int):
        return cls.Settings(depth=min(9, blocks))

    def step_work(self, size: StepSize) -> Work:
        return size.through_image_tower(self.settings.tokens, depth=self.settings.depth)
