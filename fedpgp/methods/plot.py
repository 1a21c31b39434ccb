"""PLOT, federated: several prompts, to which the patches of an image are transported (Chen et al.,
ICLR 2023, arXiv 2210.01253).

    y_c = s * sum_m,i T[m, i] cos(patch_m, z_i,c)    T: balanced optimal transport, no gradient
                                                     through it

``pooled=true`` adds s cos(x, mean_i z_i,c), x the pooled feature and z not of unit norm in the
mean, as the public code does on ImageNet alone. All prompts are averaged.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Images, Method, Params, cosine_logits, register
from fedpgp.prompts import starting_contexts
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet, Task
from fedpgp.transport import plans, similarities


@dataclass(frozen=True)
class PlotSettings:
    """Settings of PLOT.

    Attributes:
        prompts: M.
        epsilon: of the entropy.
        threshold, iterations: when Sinkhorn's iteration stops.
        pooled: whether the pooled feature's logits are added.
    """

    prompts: int = 4
    epsilon: float = 0.1
    threshold: float = 1e-2
    iterations: int = 100
    pooled: bool = False

    def __post_init__(self):
        check_number("method.prompts", self.prompts, least=1, whole=True)
        check_number("method.epsilon", self.epsilon, above=0)
        check_number("method.threshold", self.threshold, least=0)
        check_number("method.iterations", self.iterations, least=1, whole=True)
        check_choice("method.pooled", self.pooled, (False, True))


@register("plot")
class Plot(Method):
    """Shared: p_G (M, m, d). Nothing personal."""

    about = About(
        title="PLOT",
        paper="Chen et al., ICLR 2023",
        family="prompt_learning",
        shared="contexts",
        sent="prompts*m*d",
        passes="`prompts`",
        official=(
            "declared difference: CHENGY12/PLOT at 728539f stops the transport of a whole batch "
            "at once; exact (run) where it converges, for ImageNet with `method.pooled=true`"
        ),
        order=24,
    )
    per_image = "shared"
    Settings = PlotSettings

    def __init__(self, settings: PlotSettings, task: Task):
        super().__init__(settings, task)
        self.inputs = ("patches", "features") if settings.pooled else ("patches",)

    def init_shared(self, rng: np.random.Generator) -> Params:
        task = self.task
        return {
            "p_G": starting_contexts(
                self.settings.prompts, task.clip, task.n_ctx, task.context_init, rng
            )
        }

    def contexts(self, training: bool) -> int:
        return self.settings.prompts

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        """(K, M, C, e); with ``pooled`` as long as the text tower makes them."""
        encoder = classes.encoder(self.task.n_ctx)
        return encoder.raw(shared["p_G"]) if self.settings.pooled else encoder(shared["p_G"])

    def logits(self, classifier: Tensor, images: Images, classes: ClassSet) -> Tensor:
        s = self.settings
        sim = similarities(
            images.patches, F.normalize(classifier, dim=-1) if s.pooled else classifier
        )
        plan = plans(1 - sim, 1.0, s.epsilon, s.threshold, s.iterations, unbalanced=False)
        logits = self.task.logit_scale * (plan * sim).sum((-2, -1))
        if not s.pooled:
            return logits
        pooled = F.normalize(classifier.mean(1), dim=-1)
        return logits + cosine_logits(pooled, images.features, self.task.logit_scale)

    def step_work(self, size: StepSize) -> Work:
        return size.texts(self.settings.prompts) + size.similarities(self.settings.prompts)
