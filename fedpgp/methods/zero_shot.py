"""Zero-shot CLIP: a hand-written template for each class, nothing is learned (Radford et al., ICML
2021, arXiv 2103.00020)."""

from torch import Tensor

from fedpgp.methods.about import About
from fedpgp.methods.base import Method, Params, register
from fedpgp.task import ClassSet


@register("zero_shot")
class ZeroShot(Method):
    """The hand-written template's features for everybody (``protocol.template``)."""

    about = About(
        title="Zero-shot CLIP",
        paper="Radford et al., ICML 2021",
        family="prompts",
        learns=(),
        passes="none",
        official="exact (read): KaiyangZhou/CoOp at ff61507, the same templates",
        order=0,
    )
    learns = False
    no_class_embeddings = "its clients send nothing"

    def why_not_per_image(self) -> str:
        return "method=zero_shot: it learns nothing"

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return classes.zero_shot.unsqueeze(0)
