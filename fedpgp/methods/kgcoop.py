"""KgCoOp, federated: the learned class features are kept near CLIP's own (Yao et al., CVPR
2023, arXiv 2303.13283).

    L = CE + w * (1 - mean_c cos(z_c, z_C,c))        z_C: the hand-written template, frozen

Only the context is trained and sent.
"""

from dataclasses import dataclass

from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class KgCoOpSettings:
    """Settings of KgCoOp.

    Attributes:
        weight: w, of the knowledge term.
    """

    weight: float = 8.0

    def __post_init__(self):
        check_number("method.weight", self.weight, least=0)


@register("kgcoop")
class KgCoOp(PromptFL):
    """One shared context (m, d), no personal tensor."""

    about = About(
        title="KgCoOp",
        paper="Yao et al., CVPR 2023",
        family="prompt_learning",
        shared="context",
        sent="m*d",
        official="exact (run): htyao89/KgCoOp at c43ccc3",
        order=22,
    )
    per_image = "shared"
    Settings = KgCoOpSettings

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        classifier = self.global_classifier(params, classes)
        ce = cross_entropy(
            self.logits(classifier, batch.images, classes), batch.labels, batch.weights
        )
        return ce + self._distance(classifier, classes)

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        return self._distance(self.global_classifier(params, classes), classes)

    def _distance(self, classifier: Tensor, classes: ClassSet) -> Tensor:
        """Weighted distance from CLIP's own class features, (K,)."""
        return self.settings.weight * (
            1 - (classifier * classes.template_features).sum(-1).mean(-1)
        )
