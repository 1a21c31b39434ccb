"""ProDA, federated: a distribution of prompts for each class (Lu et al., CVPR 2022, arXiv
2205.03340).

    m_c       = mean_i z_i,c        of M prompts, not normalised
    A_ck[dim] = sum_i (z_i,c - m_c)(z_i,k - m_k) / (M + 1)
    y_k       = s x.m_k + s^2/2 sum_dim x^2 (A_yy + A_kk - 2 A_yk)    in training, for an image x of
                                                                      class y
    L         = CE(y) + ratio * mean over pairs of |cos| of the prompts' features without a class
    y_k       = s x.m_k                                               in prediction

A step uses a random part of the prompts. The paper has no code; class names stand at the end of
every prompt here. All prompts are averaged.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Method, Params, StepContext, register
from fedpgp.prompts import starting_contexts
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.text import PromptedTextEncoder


@dataclass(frozen=True)
class ProDASettings:
    """Settings of ProDA.

    Attributes:
        prompts: M.
        a_step: prompts drawn for each step of training, at most M.
        ratio: weight of the diversity term.
    """

    prompts: int = 32
    a_step: int = 4
    ratio: float = 0.1

    def __post_init__(self):
        check_number("method.prompts", self.prompts, least=1, whole=True)
        check_number("method.a_step", self.a_step, least=1, whole=True)
        check_number("method.ratio", self.ratio, least=0)
        if self.a_step > self.prompts:
            raise FedPGPError(
                f"method.a_step={self.a_step}: there are only method.prompts={self.prompts}"
            )


@register("proda")
class ProDA(Method):
    """Shared: p_G (M, m, d). Nothing personal."""

    about = About(
        title="ProDA",
        paper="Lu et al., CVPR 2022",
        family="prompt_learning",
        shared="contexts",
        sent="prompts*m*d",
        passes="`a_step`",
        official="no code exists (bbbdylan/proda holds a page of text)",
        order=25,
    )
    per_image = "shared"
    Settings = ProDASettings

    def init_shared(self, rng: np.random.Generator) -> Params:
        task = self.task
        return {
            "p_G": starting_contexts(
                self.settings.prompts, task.clip, task.n_ctx, task.context_init, rng
            )
        }

    def contexts(self, training: bool) -> int:
        return self.settings.a_step if training else self.settings.prompts

    @cached_property
    def nameless(self) -> PromptedTextEncoder:
        """Encodes a context followed by a full stop alone."""
        task = self.task
        return PromptedTextEncoder(
            task.clip, [""], task.n_ctx, dtype=task.dtype, compute=task.compute
        )

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        p = self._of_step(params, step)
        count, scale = p.shape[1], self.task.logit_scale
        z = classes.encoder(self.task.n_ctx)(p)  # (K, N, C, e)
        mean, away = z.mean(1), z - z.mean(1, keepdim=True)
        x = batch.images.features
        spread = x.square() @ away.square().sum(1).mT  # (K, B, C): sum_dim x^2 A_kk (N + 1)
        of_label = away.gather(
            2, batch.labels[:, None, :, None].expand(-1, count, -1, away.shape[-1])
        )  # of class y
        between = torch.einsum("knbe,knce->kbc", x.square().unsqueeze(1) * of_label, away)
        of_own = spread.gather(2, batch.labels.unsqueeze(-1))
        logits = scale * x @ mean.mT + scale**2 / 2 * (of_own + spread - 2 * between) / (count + 1)
        return cross_entropy(logits, batch.labels, batch.weights)

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        p = self._of_step(params, step)
        count = p.shape[1]
        if count == 1:
            return None
        free = self.nameless(p).squeeze(2)  # (K, N, e)
        pairs = (free @ free.mT).abs().sum((1, 2)) - count
        return self.settings.ratio * pairs / (count * (count - 1))

    def _of_step(self, params: Params, step: StepContext) -> Tensor:
        """The contexts of each client's step, (K, N, m, d)."""
        drawn = torch.stack([self.drawn(step, client) for client in step.clients])
        places = drawn.to(params["p_G"].device)[:, :, None, None]
        return params["p_G"].gather(1, places.expand(-1, -1, *params["p_G"].shape[2:]))

    def drawn(self, step: StepContext, client: int) -> Tensor:
        """The prompts of a client's step."""
        rng = generator(step.seed, "proda", client, step.server_round, step.step)
        return torch.from_numpy(rng.permutation(self.settings.prompts)[: self.settings.a_step])

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(shared["p_G"]).mean(1)

    def step_work(self, size: StepSize) -> Work:
        prompts = self.settings.a_step
        return size.texts(prompts) + size.texts(prompts, names=0)
