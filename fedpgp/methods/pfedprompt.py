"""pFedPrompt (reconstructed): PromptFL's shared prompt, and a memory of the client's own images,
which learns nothing (after Guo et al., WWW 2023, doi 10.1145/3543507.3583518).

    y = s x T^T + alpha * exp(-beta (1 - x F^T)) Y    T = g(p_G); F: features of the client's
                                                      training images, Y: their classes, one-hot
    L = CE(s x T^T)

The paper has no code, and its exact attention is not public: this is the non-parametric
key-value attention of its abstract in its usual form. The prompt is trained without the memory,
in which every training image would find itself. The memory is made of the client's images when
it is needed and never sent.
"""

from dataclasses import dataclass

from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Images,
    LoadClientBatch,
    Params,
    StepContext,
    cosine_logits,
    register,
)
from fedpgp.methods.promptfl import PromptFL
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class PFedPromptSettings:
    """Settings of pFedPrompt.

    Attributes:
        alpha: weight of the memory.
        beta: sharpness of its attention.
    """

    alpha: float = 1.0
    beta: float = 5.5

    def __post_init__(self):
        check_number("method.alpha", self.alpha, least=0)
        check_number("method.beta", self.beta, above=0)


@register("pfedprompt")
class PFedPrompt(PromptFL):
    """Shared: p_G (m, d). Personal: the memory, which is no state."""

    about = About(
        title="pFedPrompt",
        paper="Guo et al., WWW 2023 (reconstructed)",
        family="federated_prompts",
        shared="context",
        personal="memory of its images",
        sent="m*d",
        order=16,
    )
    Settings = PFedPromptSettings
    buffers = ("keys", "ids", "real")

    def why_not_per_image(self) -> str:
        return (
            "method=pfedprompt: its personal model answers by the features of the client's images "
            "themselves"
        )

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        batch = load_batch()
        ids = batch.weights.new_tensor(classes.ids)
        return {
            "keys": batch.images.features,
            "ids": ids[batch.labels],
            "real": batch.weights.sign(),
        }

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        logits = self.logits(self.global_classifier(params, classes), batch.images, classes)
        return cross_entropy(logits, batch.labels, batch.weights)

    def personal_classifier(self, params: Params, classes: ClassSet) -> Params:
        ids = params["ids"].new_tensor(classes.ids)
        values = (params["ids"].unsqueeze(-1) == ids) * params["real"].unsqueeze(-1)
        return {
            "texts": self.global_classifier(params, classes),
            "keys": params["keys"],
            "values": values,
        }

    def logits(self, classifier: Classifier, images: Images, classes: ClassSet) -> Tensor:
        x = images.features
        if isinstance(classifier, Tensor):
            return cosine_logits(classifier, x, self.task.logit_scale)
        near = (self.settings.beta * (x @ classifier["keys"].mT - 1)).exp()
        text = cosine_logits(classifier["texts"], x, self.task.logit_scale)
        return text + self.settings.alpha * near @ classifier["values"]
