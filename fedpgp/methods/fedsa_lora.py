"""FedSA-LoRA: A is shared, B stays with the client (Guo et al., ICLR 2025, arXiv 2410.01463), here
in CLIP's towers.

    W_i = W + (alpha / b) B_i A_i
    server: A <- sum_i w_i A_i

A is what clients have in common, B is the client's own; both are trained together.
"""

import numpy as np

from fedpgp.methods.about import About
from fedpgp.methods.base import Classifier, Params, register
from fedpgp.methods.lora import LoRA
from fedpgp.task import ClassSet


@register("fedsa_lora")
class FedSALoRA(LoRA):
    """Shared: A (L, b, in) of each layer. Personal: B (L, out, b)."""

    about = About(
        title="FedSA-LoRA",
        paper="Guo et al., ICLR 2025",
        family="lora",
        learns=("LoRA",),
        shared="A",
        personal="B",
        sent="L*len(targets)*rank*d",
        official=(
            "declared difference: adapters are in CLIP's towers and without dropout, shared "
            "and kept as in Pengxin-Guo/FedSA-LoRA at fc276b5"
        ),
    )
    per_image = "shared"
    no_class_embeddings = "A says nothing without a client's own B"

    def init_shared(self, rng: np.random.Generator) -> Params:
        return self.start_A(rng)

    def init_personal(self, rng: np.random.Generator) -> Params:
        return self.start_B()

    def global_classifier(self, shared: Params, classes: ClassSet) -> None:
        """There is none: A alone is the frozen model."""
        return None

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        return self.classifier(self.adapters(params), classes)
