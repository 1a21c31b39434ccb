"""FedTPG: a network that writes the prompt from the class names (Qiu et al., ICLR
2024, arXiv 2310.06123).

    E = text features of the bare class names, (C, e), frozen
    x = MHA(LN(Q), LN(E), LN(E))        Q: m learned queries; no residual
    p = x + FF(x)                       one context for the whole list of classes
    L = CE(g(p))

In training E holds the client's own classes, in evaluation all classes; the loss is over all
classes (``loss_classes=own``: over the client's own, as in the paper). The whole network is shared;
the server takes the plain mean.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.layers import attention, attention_start, gated, gated_start, norm, norm_start
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Batch,
    LoadClientBatch,
    Method,
    Params,
    StepContext,
    mask_other_classes,
    register,
)
from fedpgp.prompts import normal
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class FedTPGSettings:
    """Settings of FedTPG.

    Attributes:
        heads: of the attention.
        loss_classes: classes in the loss: ``all``, or each client's ``own``.
    """

    heads: int = 4
    loss_classes: str = "all"

    def __post_init__(self):
        check_number("method.heads", self.heads, least=1, whole=True)
        check_choice("method.loss_classes", self.loss_classes, ("all", "own"))


@register("fedtpg")
class FedTPG(Method):
    """Shared: the generator (about 4.2 million numbers at width 512). Nothing personal."""

    about = About(
        title="FedTPG",
        paper="Qiu et al., ICLR 2024",
        family="federated_prompts",
        shared="prompt generator",
        sent="m*d + 14*d*d + 2*e*d + 17*d + 2*e",
        official="exact (run) with `method.loss_classes=own`: boschresearch/FedTPG at f141c29",
        order=12,
    )
    Settings = FedTPGSettings
    buffers = ("client_classes",)
    precomputes_for_evaluation = False
    equal_weights = True

    def init_shared(self, rng: np.random.Generator) -> Params:
        width, embed = self.task.clip.width, self.task.clip.embed
        if width % self.settings.heads:
            raise FedPGPError(
                f"method.heads={self.settings.heads} does not divide the text tower's width {width}"
            )
        return {
            "Q": normal((self.task.n_ctx, width), rng),
            **norm_start("norm_q", width),
            **norm_start("norm_e", embed),
            **attention_start("attention", width, embed, rng),
            **gated_start("ff", width, rng),
        }

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        return {"client_classes": load_batch(images=False).seen(len(classes.ids))}

    def why_not_per_image(self) -> str:
        return (
            "method=fedtpg: its network reads which classes a client has images of, without noise"
        )

    def context(self, params: Params, classes: ClassSet, among: Tensor | None = None) -> Tensor:
        """The generated context (K, m, d) from all classes, or from those where
        ``among`` (K, C) is True."""
        queries = norm(params, "norm_q", params["Q"])
        names = norm(params, "norm_e", classes.features_of("{}").expand(len(queries), -1, -1))
        x = attention(params, "attention", queries, names, self.settings.heads, among)
        return x + gated(params, "ff", x)

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        client_classes = params["client_classes"] > 0
        classifier = classes.encoder(self.task.n_ctx)(self.context(params, classes, client_classes))
        logits = self.logits(classifier, batch.images, classes)
        if self.settings.loss_classes == "own":
            logits = mask_other_classes(logits, client_classes)
        return cross_entropy(logits, batch.labels, batch.weights)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(self.context(shared, classes))

    def step_work(self, size: StepSize) -> Work:
        m, d, e = self.task.n_ctx, self.task.clip.width, self.task.clip.embed
        queries, names = size.layer(m, d, 14 * d), size.layer(len(size.classes.names), e, 2 * d)
        return size.texts() + queries + names
