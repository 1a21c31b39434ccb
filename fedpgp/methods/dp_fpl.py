"""DP-FPL: a shared and a full-rank personal context, trained through clipped, noisy low-rank gradients (Tran et al.,
ICLR 2025, arXiv 2501.13904).

    p_i = p_G + p_L,i
    p_L = u v + r        at every step: rank k by one power iteration, u (m, k) and v (k, d) orthonormal, r the rest
    G   = dCE/dp_i;      g_G = clip(G);      g_u = clip(G v^T) + noise;      g_v = clip(u^T G) + noise
    g_L = g_u v + u g_v - u u^T g_u v

The factors only shape the gradient: one text pass suffices. clip(.) scales the batch's gradient to norm C at most; the
noise is N(0, std^2) with std = C/B sqrt(T ln(1/delta)) / epsilon. The server adds N(0, (lr std/|S|)^2) to the average,
which is the paper's noise on the averaged gradient for one step a round.

Gradients are clipped a batch, as in the paper's code, not an image: the guarantee of (epsilon, delta) does not follow
for single images. (That code also adds where the paper takes away, and loses all but a round's last step.)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.methods.base import Batch, Params, Round, Step
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import normal
from fedpgp.seeding import generator
from fedpgp.task import Candidates


@dataclass(frozen=True)
class DPFPLSettings:
    """Settings of DP-FPL.

    Attributes:
        rank: k of the factors.
        epsilon: of the noise; 0 is no noise (the paper: also 0.4 to 0.01).
        delta: of the noise.
        clip: C, largest norm of a gradient.
        steps: T, steps the noise is reckoned for.
        batch: B, images a step it is reckoned for.
    """

    rank: int = 8
    epsilon: float = 0.0
    delta: float = 1e-5
    clip: float = 10.0
    steps: int = 100
    batch: int = 32

    def __post_init__(self):
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.epsilon", self.epsilon, least=0)
        check_number("method.delta", self.delta, above=0, most=1)
        check_number("method.clip", self.clip, above=0)
        check_number("method.steps", self.steps, least=1, whole=True)
        check_number("method.batch", self.batch, least=1, whole=True)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on a client's gradient."""
        if self.epsilon == 0:
            return 0.0
        return self.clip / self.batch * math.sqrt(self.steps * math.log(1 / self.delta)) / self.epsilon


class DPFPL(PromptFL):
    """Shared: p_G (m, d). Personal: p_L (m, d)."""

    name = "dp_fpl"
    Settings = DPFPLSettings
    equal_weights = True  # what the server's noise is reckoned for

    def init_personal(self, rng: np.random.Generator) -> Params:
        shape = (self.task.n_ctx, self.task.clip.width)
        if self.settings.rank > min(shape):
            raise FedPGPError(
                f"method.rank={self.settings.rank}: a context of {shape[0]} tokens has rank {min(shape)} at most"
            )
        return {"p_L": normal(shape, rng)}

    def personal_features(self, params: Params, classes: Candidates) -> Tensor:
        return classes.encoder(self.task.n_ctx)(params["p_G"] + params["p_L"])

    def gradients(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> tuple[Tensor, Params]:
        s = self.settings
        loss, grads = super().gradients(params, batch, classes, step)
        g = grads["p_G"]  # that of p_i, which is p_L's too
        draws = [generator(step.seed, "dp_fpl", client, step.round, step.step) for client in step.clients]
        (m, d), k = g.shape[1:], s.rank

        def noise(*shape: int) -> Tensor:
            return torch.stack([torch.from_numpy(rng.normal(size=shape)) for rng in draws]).to(g)

        u, _ = torch.linalg.qr(params["p_L"] @ noise(d, k))
        v = torch.linalg.qr(params["p_L"].mT @ u)[0].mT
        g_u = clipped(g @ v.mT, s.clip) + s.std * noise(m, k)
        g_v = clipped(u.mT @ g, s.clip) + s.std * noise(k, d)
        return loss, {"p_G": clipped(g, s.clip), "p_L": g_u @ v + u @ g_v - u @ (u.mT @ g_u) @ v}

    def after_round(self, averaged: Params, round: Round) -> tuple[Params, Params]:
        rng = generator(round.seed, "dp_fpl server", round.number)
        noise = torch.from_numpy(rng.normal(size=averaged["p_G"].shape)).to(averaged["p_G"])
        return {"p_G": averaged["p_G"] + round.lr * self.settings.std / len(round.clients) * noise}, {}


def clipped(gradient: Tensor, largest: float) -> Tensor:
    """Each client's gradient (K, ..., ...), scaled to a norm of at most ``largest``."""
    norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
    return gradient * (largest / norm.clamp(min=largest))
