"""pFedMMA: adapters at the blocks of both towers, with a small layer in the middle that is shared
(Ghiasvand et al., ICLR 2026, arXiv 2507.05394). No prompt: the text is "a photo of a {class}.".

    x <- block(x) + alpha * up(relu(S relu(down(LN1(x)))))
         down (32, W), up (W, 32): of a tower and a block, personal
         S (32, 32): of a block, for both towers, shared
    L = CE; gradients of the adapters are taken as if alpha were 1

Only S is sent. (Public code tests later rounds with the first round's text features.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Images, Method, Params, StepContext, cosine_logits, register
from fedpgp.step_work import StepSize, Work, tower_gflop
from fedpgp.task import ClassSet
from fedpgp.towers.image import ImageTower, check_depth

PHRASE = "a photo of a"


@dataclass(frozen=True)
class PFedMMASettings:
    """Settings of pFedMMA.

    Attributes:
        size: of the adapters' middle.
        first, last: blocks with adapters, from 1.
        alpha: factor on the adapters' output.
    """

    size: int = 32
    first: int = 5
    last: int = 12
    alpha: float = 1e-3

    def __post_init__(self):
        check_number("method.size", self.size, least=1, whole=True)
        check_number("method.first", self.first, least=1, whole=True)
        check_number("method.last", self.last, least=1, whole=True)
        check_number("method.alpha", self.alpha, above=0)
        if self.first > self.last:
            raise FedPGPError(f"method.first={self.first} is behind method.last={self.last}")


@register("pfedmma")
class PFedMMA(Method):
    """Shared: S (L, 32, 32) and bias. Personal: down and up of both towers (L, ...)."""

    about = About(
        title="pFedMMA",
        paper="Ghiasvand et al., ICLR 2026",
        family="federated_prompts",
        learns=("adapters",),
        shared="middle of the adapters",
        personal="the rest of them, in both towers",
        sent="(last - first + 1)*(size*size + size)",
        official="exact (run): sajjad-ucsb/pFedMMA at 84197bb",
        model="tiny_vit",
        order=18,
    )
    per_image = "copies"
    small = {"first": 1, "last": 2}
    Settings = PFedMMASettings
    no_class_embeddings = "the shared layer is no model without a client's own layers"
    inputs = ("pixels",)

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    def init_shared(self, rng: np.random.Generator) -> Params:
        return self._layer("middle", self.settings.size, self.settings.size, rng)

    def init_personal(self, rng: np.random.Generator) -> Params:
        params: Params = {}
        check_depth("method.last", self.settings.last, self.task.clip.text_blocks, "text")
        check_depth("method.last", self.settings.last, self.tower.depth, "image")
        for tower, width in (("text", self.task.clip.width), ("image", self.tower.width)):
            params |= self._layer(f"{tower}.down", self.settings.size, width, rng)
            params |= self._layer(f"{tower}.up", width, self.settings.size, rng)
        return params

    def _layer(self, name: str, outputs: int, inputs: int, rng: np.random.Generator) -> Params:
        """A linear layer of each block: Kaiming-normal over its outputs, no bias at the start."""
        blocks = self.settings.last - self.settings.first + 1
        weight = torch.from_numpy(rng.normal(0, (2 / outputs) ** 0.5, (blocks, outputs, inputs)))
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(blocks, outputs)}

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images)

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        loss, grads = super().gradients(params, batch, classes, step)
        return loss, {name: grad / self.settings.alpha for name, grad in grads.items()}

    def adapter(self, params: Params, tower: str, block: int, x: Tensor) -> Tensor | None:
        """Return an adapter's output at a block (from 0), (K, tokens, W); x likewise, after
        the first layer norm."""
        at = block + 1 - self.settings.first
        if not 0 <= at <= self.settings.last - self.settings.first:
            return None
        for name in (f"{tower}.down", "middle", f"{tower}.up"):
            x = x @ params[f"{name}.weight"][:, at].mT + params[f"{name}.bias"][:, at].unsqueeze(1)
            x = x if name.endswith("up") else x.relu()
        return self.settings.alpha * x

    def global_classifier(self, shared: Params, classes: ClassSet) -> None:
        """There is none: the shared layer says nothing without a client's others."""
        return None

    def personal_classifier(self, params: Params, classes: ClassSet) -> Params:
        phrase = self.task.clip.embed_phrase(PHRASE).to(self.task.dtype)
        context = phrase.expand(len(params["middle.bias"]), 1, -1, -1)

        def adapter(block: int, x: Tensor) -> Tensor | None:
            norm = self.task.clip.text_model.transformer.resblocks[block].ln_1
            weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
            return self.adapter(
                params, "text", block, F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
            )

        return {
            **params,
            "texts": classes.encoder(len(phrase), words="").encode_deep(
                context, adapter, first=self.settings.first - 1
            ),
        }

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        def adapter(block: int, x: Tensor) -> Tensor | None:
            normed = self.tower.norm(f"transformer.resblocks.{block}.ln_1", x)
            return self.adapter(classifier, "image", block, normed)

        x = self.tower(images.pixels, adapter=adapter)
        return cosine_logits(classifier["texts"], x, self.task.logit_scale)

    @classmethod
    def settings_of(cls, blocks: int):
        return cls.Settings(first=min(5, blocks), last=min(12, blocks))

    def step_work(self, size: StepSize) -> Work:
        """Forward through both towers, of the text without the blocks up to the first adapter's,
        whose outputs have nothing to do with an image or a client; backward through the blocks
        behind it. Nothing that is learned comes before the first adapter."""
        settings, tower, count = self.settings, self.tower, len(size.classes.names)
        encoder, images, inner = size.classes.encoder(4), size.images, self.settings.size
        text_blocks = len(encoder.tower.blocks)
        work = Work(images * tower.embedding_gflop, images * tower.tokens, tower.width)
        for copies, width, tokens, read, depth, known in (
            (images, tower.width, tower.tokens, 1, tower.depth, 0),
            (1, self.task.clip.width, encoder.tokens, count, text_blocks, settings.first),
        ):
            blocks, behind = depth - known, depth - settings.first
            forward = tower_gflop(width, blocks, tokens, read=read) if blocks else 0.0
            backward = tower_gflop(width, behind, tokens, read=read) if behind else 0.0
            work += Work(copies * (forward + backward), copies * tokens, width)
            rows = [tokens] * (settings.last - settings.first)
            rows.append(read if settings.last == depth else tokens)
            first, others = copies * rows[0], copies * sum(rows[1:])
            work += size.layer(first, width, inner, 2) + size.layer(others, width, inner)
            work += size.layer(first + others, inner, inner + width)
        return work
