"""PromptSRC, federated: deep prompts in both towers that regulate themselves (Khattak et al., ICCV
2023, arXiv 2307.06948).

    z = g(t), x = f(patches, v)        t (J, m, d), v (J, m, W): independent prompts of the first J
                                       blocks
    z' = mean of sixty templates' features, then normalised;
    x' = CLIP's own feature of the image;  both frozen
    L = CE + 25 mean |z - z'| + 10 mean |x - x'| + KL(softmax(s x' z'^T) || softmax(s x z^T)) / C

The server averages the prompts. Gaussian prompt aggregation: the result of the run is the
weighted sum of all rounds' averages, with weights from a Gaussian over the rounds; the
rounds themselves continue from the plain average. (Public code overwrites the working
prompts with the unfinished sum.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, RoundContext, StepContext, cosine_logits, register
from fedpgp.methods.maple import deep_text_prompts
from fedpgp.methods.vpt import VPT
from fedpgp.prompts import normal
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text.templates import SIXTY
from fedpgp.towers.image import check_depth


@dataclass(frozen=True)
class PromptSRCSettings:
    """Settings of PromptSRC.

    Attributes:
        depth: J, blocks with prompts, in both towers.
        text_weight, image_weight: of the two distances.
        mean, std: of the Gaussian over rounds, as fractions of their number (the paper's 15 and 1
            of 20 epochs); std 0 takes the last round alone.
    """

    depth: int = 9
    text_weight: float = 25.0
    image_weight: float = 10.0
    mean: float = 0.75
    std: float = 0.05

    def __post_init__(self):
        check_number("method.depth", self.depth, least=1, whole=True)
        for name in ("text_weight", "image_weight", "mean", "std"):
            check_number(f"method.{name}", getattr(self, name), least=0)


@register("promptsrc")
class PromptSRC(VPT):
    """Shared: t (J, m, d), v (J, m, W). Nothing personal."""

    about = About(
        title="PromptSRC",
        paper="Khattak et al., ICCV 2023",
        family="prompt_learning",
        learns=("text prompts", "image prompts"),
        shared="deep prompts of both towers",
        sent="depth*m*(d + W)",
        official="exact (run): muzairkhattak/PromptSRC at bb95c77",
        model="tiny_vit",
        order=26,
    )
    per_image = "copies"
    small = {"depth": 2}
    Settings = PromptSRCSettings
    no_class_embeddings = ""
    training_inputs = ("features",)

    def init_shared(self, rng: np.random.Generator) -> Params:
        check_depth("method.depth", self.settings.depth, self.tower.depth, "image")
        v = normal((self.settings.depth, self.task.n_ctx, self.tower.width), rng)
        return {**deep_text_prompts(self.task, self.settings.depth, rng), "v": v}

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        ce, text, image, apart = self._terms(params, batch, classes)
        s = self.settings
        return ce + s.text_weight * text + s.image_weight * image + apart

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        ce, _, image, apart = self._terms(params, batch, classes)
        return ce + self.settings.image_weight * image + apart

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        z = classes.encoder(self.task.n_ctx).encode_deep(params["t"])
        return self.settings.text_weight * (z - self.ensemble(classes)).abs().mean((-2, -1))

    def _terms(
        self, params: Params, batch: Batch, classes: ClassSet
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss's four terms, (K,) each; the two distances without their weights."""
        scale = self.task.logit_scale
        classifier = self.global_classifier(params, classes)
        z, x = classifier["texts"], self.tower(batch.images.pixels, classifier["v"])
        fixed_z, fixed_x = self.ensemble(classes), batch.images.features
        logits = cosine_logits(z, x, scale)
        text = (z - fixed_z).abs().mean((-2, -1))
        image = ((x - fixed_x).abs().mean(-1) * batch.weights).sum(-1)
        known = cosine_logits(fixed_z, fixed_x, scale).log_softmax(-1)
        apart = (known.exp() * (known - logits.log_softmax(-1))).mean(-1)
        ce = cross_entropy(logits, batch.labels, batch.weights)
        return ce, text, image, (apart * batch.weights).sum(-1)

    def ensemble(self, classes: ClassSet) -> Tensor:
        """z', unit norm, (C, e)."""
        return classes.ensemble(SIXTY)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        return {
            "v": shared["v"],
            "texts": classes.encoder(self.task.n_ctx).encode_deep(shared["t"]),
        }

    def init_server_state(self, clients: int) -> Params:
        return {
            name: torch.zeros_like(tensor)
            for name, tensor in self.init_shared(np.random.default_rng(0)).items()
        }

    @classmethod
    def depends_on_rounds(cls, settings: PromptSRCSettings) -> bool:
        return settings.std > 0

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        if self.settings.std == 0:
            return averaged, context.server_state
        rounds = torch.arange(1, context.num_rounds + 1, dtype=torch.float64)
        weights = (
            -((rounds / context.num_rounds - self.settings.mean) ** 2) / (2 * self.settings.std**2)
        ).softmax(0)
        weight = weights[context.server_round - 1].item()
        total = {
            name: sum_so_far + weight * averaged[name]
            for name, sum_so_far in context.server_state.items()
        }
        return (total if context.server_round == context.num_rounds else averaged), total

    @classmethod
    def settings_of(cls, blocks: int):
        return cls.Settings(depth=min(9, blocks))

    def step_work(self, size: StepSize) -> Work:
        depth = self.settings.depth
        return size.texts(depth=depth) + size.through_image_tower(self.task.n_ctx, depth=depth)
