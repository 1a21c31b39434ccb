"""Zero-shot CLIP: a hand-written template for each class, nothing is learned (Radford et al., ICML
2021, arXiv 2103.00020)."""

from torch import Tensor

from fedpgp.methods.base import Method, Params, register
from fedpgp.task import ClassSet


@register("zero_shot")
class ZeroShot(Method):
    """The hand-written template's features for everybody (``protocol.template``)."""

    learns = False

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return classes.zero_shot.unsqueeze(0)
