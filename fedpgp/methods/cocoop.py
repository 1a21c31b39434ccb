"""CoCoOp, federated: the context is shifted by what the image shows (Zhou et al., CVPR
2022, arXiv 2203.05557).

    pi(x) = W2 relu(W1 x + b1) + b2        one shift for all m tokens
    y_c   = s * cos(x, g(p_G + pi(x))_c)   one pass of the text tower for each image

Context and network are shared. The classes of one image still share its prefix.
"""

import numpy as np
import torch
from torch import Tensor

from fedpgp.layers import linear, linear_start
from fedpgp.methods.about import About
from fedpgp.methods.base import Images, Method, Params, register
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

CHUNK = 8
"""Images of a client whose texts are encoded in one chunk."""


@register("cocoop")
class CoCoOp(Method):
    """Shared: p_G (m, d), W1 (e/16, e), W2 (d, e/16) and their biases. Nothing personal."""

    about = About(
        title="CoCoOp",
        paper="Zhou et al., CVPR 2022",
        family="prompt_learning",
        shared="context, meta-network",
        sent="m*d + max(8, e//16)*(e + d + 1) + d",
        passes="one for each image",
        official="exact (run): KaiyangZhou/CoOp at ff61507",
        order=21,
    )
    per_image = "copies"
    images_a_pass = CHUNK  # a fraction of the memory
    no_class_embeddings = "they depend on the image"

    def init_shared(self, rng: np.random.Generator) -> Params:
        task, embed = self.task, self.task.clip.embed
        hidden = self._hidden(embed)
        return {
            "p_G": starting_context(task.clip, task.n_ctx, task.context_init, rng),
            **linear_start("1", hidden, embed, rng),
            **linear_start("2", task.clip.width, hidden, rng),
        }

    def contexts(self, training: bool) -> int:
        return CHUNK

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        """Return the tensors themselves: class features depend on the image."""
        return shared

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        encoder, x = classes.encoder(self.task.n_ctx), images.features
        shift = linear(classifier, "2", linear(classifier, "1", x).relu())
        context = classifier["p_G"].unsqueeze(1) + shift.unsqueeze(2)  # (K, B, m, d)
        texts = torch.cat(
            [encoder(part) for part in context.split(CHUNK, dim=1)], dim=1
        )  # (K, B, C, e)
        return self.task.logit_scale * (texts @ x.unsqueeze(-1)).squeeze(-1)

    def _hidden(self, embed: int) -> int:
        return max(8, embed // 16)  # small models would be left with none

    def step_work(self, size: StepSize) -> Work:
        d, e = self.task.clip.width, self.task.clip.embed
        hidden = self._hidden(e)
        meta = size.layer(size.images, e, hidden, 2) + size.layer(size.images, hidden, d)
        return size.texts(size.images) + meta
