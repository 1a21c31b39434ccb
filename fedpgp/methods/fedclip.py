"""FedCLIP: an attention adapter on the image feature, no prompt (Lu et al., IEEE Data Eng. Bull.
2023, arXiv 2302.13485).

    a  = softmax(W2 tanh(W1 f + b1) + b2)        f: image feature as the tower makes it, not of unit
                                                 norm
    f' = a * f, normalised                       the answer is the cosine with the text features of
                                                 the classes

The text is "a picture of a {class}" as in the public code, or the data set's
template (``text=template``).

The loss is the symmetric contrastive one inside a batch, each image with the text of its own label;
images of one class in a batch count as each other's negatives. ``loss=cross_entropy`` is the
cross-entropy over the class texts. The adapter is shared; the server takes the plain mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import check_choice
from fedpgp.layers import linear, linear_start
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Images, Method, Params, StepContext, cosine_logits, register
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

PICTURE = "a picture of a {}"
"""The public code's text, without a full stop."""


@dataclass(frozen=True)
class FedCLIPSettings:
    """Settings of FedCLIP.

    Attributes:
        loss: ``contrastive`` or ``cross_entropy``.
        text: ``picture`` ("a picture of a {class}") or the data set's ``template``.
    """

    loss: str = "contrastive"
    text: str = "picture"

    def __post_init__(self):
        check_choice("method.loss", self.loss, ("contrastive", "cross_entropy"))
        check_choice("method.text", self.text, ("picture", "template"))


@register("fedclip")
class FedCLIP(Method):
    """Shared: W1, W2 (e, e), b1, b2 (e). Nothing personal."""

    about = About(
        title="FedCLIP",
        paper="Lu et al., IEEE DEB 2023",
        family="federated_prompts",
        learns=("adapters",),
        shared="image-feature adapter",
        sent="2*e*e + 2*e",
        passes="none",
        official="exact (run): microsoft/PersonalizedFL at 441670e",
        order=17,
    )
    per_image = "copies"
    Settings = FedCLIPSettings
    no_class_embeddings = "its class embeddings are frozen; clients send what they do to images"
    inputs = ("features_raw",)
    equal_weights = True

    def init_shared(self, rng: np.random.Generator) -> Params:
        embed = self.task.clip.embed
        return {**linear_start("1", embed, embed, rng), **linear_start("2", embed, embed, rng)}

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        if self.settings.loss == "cross_entropy":
            return super().loss(params, batch, classes, step)
        texts = self.texts(classes)[batch.labels]
        logits = cosine_logits(texts, self.adapted(params, batch.images), self.task.logit_scale)
        padding = torch.where(batch.weights > 0, 0.0, float("-inf"))
        of_image = (logits + padding.unsqueeze(1)).log_softmax(-1).diagonal(dim1=1, dim2=2)
        of_text = (logits + padding.unsqueeze(2)).log_softmax(-2).diagonal(dim1=1, dim2=2)
        # A padded image is never the answer, not even its own.
        matched = torch.where(batch.weights > 0, of_image + of_text, 0.0)
        return -(matched * batch.weights).sum(-1) / 2

    def why_not_per_image(self) -> str | None:
        if self.settings.loss == "contrastive":
            return (
                "method.loss=contrastive of fedclip: the images of a batch are each other's "
                "negatives, so that no gradient is of one alone; take cross_entropy"
            )
        return None

    def adapted(self, params: Params, images: Images) -> Tensor:
        """f', unit norm, (K, B, e)."""
        f = images.features_raw
        return F.normalize(
            linear(params, "2", linear(params, "1", f).tanh()).softmax(-1) * f, dim=-1
        )

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        return {**shared, "texts": self.texts(classes).expand(len(shared["1.weight"]), -1, -1)}

    def texts(self, classes: ClassSet) -> Tensor:
        """Frozen features of the classes, unit norm, (classes, e)."""
        return (
            classes.template_features
            if self.settings.text == "template"
            else classes.features_of(PICTURE)
        )

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        return cosine_logits(
            classifier["texts"], self.adapted(classifier, images), self.task.logit_scale
        )

    def step_work(self, size: StepSize) -> Work:
        e = self.task.clip.embed
        return size.layer(size.images, e, e, 2) + size.layer(size.images, e, e)
