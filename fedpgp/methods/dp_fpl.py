"""DP-FPL: a shared and a full-rank personal context, trained through clipped, noisy low-rank
gradients (Tran et al., ICLR 2025, arXiv 2501.13904).

    p_i = p_G + p_L,i
    p_L = u v + r        at every step: rank k by one power iteration, u (m, k) and v (k, d)
                         orthonormal, r the rest
    G   = dCE/dp_i;   g_G = clip(G);   g_u = clip(G v^T) + noise;   g_v = clip(u^T G) + noise
    g_L = g_u v + u g_v - u u^T g_u v

The factors only shape the gradient: one text pass suffices. clip(.) scales the batch's gradient to
norm C at most; the noise is N(0, std^2) with std = C/B sqrt(T ln(1/delta)) / epsilon. The server
adds N(0, (lr std/|S|)^2) to the average, which is the paper's noise on the averaged gradient for
one step a round. With epsilon = 0 there is neither noise nor clipping, as in the public code.

What it guarantees is nothing: gradients are clipped a batch, as in that code, not an image; a round
has several steps; what a client sends carries no noise; no epsilon is accounted. The noise itself
is secret: it comes from the operating system, unless ``seeded_noise`` takes it from the run's seed,
from which anybody can draw it again. (The public code also adds where the paper takes away, divides
the factors' gradients by 10, and loses all but a round's last step.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import normal
from fedpgp.seeding import generator
from fedpgp.task import ClassSet
from fedpgp.updates.base import Metrics, ServerContext, Update, UpdateStep
from fedpgp.updates.clipping import clipped
from fedpgp.updates.gaussian import standard_normal


@dataclass(frozen=True)
class DPFPLSettings:
    """Settings of DP-FPL.

    Attributes:
        rank: k of the factors.
        epsilon: of the noise; 0 is neither noise nor clipping (the paper: also 0.4 to 0.01).
        delta: of the noise.
        clip: C, largest norm of a gradient.
        steps: T, steps the noise is computed for.
        batch: B, images a step it is computed for.
        seeded_noise: draw the noise from the run's seed, so that the run can be
            repeated; then it hides nothing.
    """

    rank: int = 8
    epsilon: float = 0.0
    delta: float = 1e-5
    clip: float = 10.0
    steps: int = 100
    batch: int = 32
    seeded_noise: bool = False

    def __post_init__(self):
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.epsilon", self.epsilon, least=0)
        check_number("method.delta", self.delta, above=0, most=1)
        check_number("method.clip", self.clip, above=0)
        check_number("method.steps", self.steps, least=1, whole=True)
        check_number("method.batch", self.batch, least=1, whole=True)
        check_choice("method.seeded_noise", self.seeded_noise, (False, True))

    @property
    def std(self) -> float:
        """Standard deviation of the noise on a client's gradient."""
        if self.epsilon == 0:
            return 0.0
        return (
            self.clip / self.batch * math.sqrt(self.steps * math.log(1 / self.delta)) / self.epsilon
        )


@register("dp_fpl")
class DPFPL(PromptFL):
    """Shared: p_G (m, d). Personal: p_L (m, d)."""

    about = About(
        title="DP-FPL",
        paper="Tran et al., ICLR 2025",
        family="federated_prompts",
        shared="context",
        personal="second context",
        sent="m*d",
        official=(
            "declared difference: linhhtran/DP-FPL at cce74b4 adds the projection and divides by "
            "10; exact (run) without these"
        ),
        order=13,
    )
    per_image = "shared"
    small = {"rank": 2}
    Settings = DPFPLSettings
    equal_weights = True  # what the server's noise is computed for

    def init_personal(self, rng: np.random.Generator) -> Params:
        shape = (self.task.n_ctx, self.task.clip.width)
        if self.settings.rank > min(shape):
            raise FedPGPError(
                f"method.rank={self.settings.rank}: a context of {shape[0]} tokens has rank "
                f"{min(shape)} at most"
            )
        return {"p_L": normal(shape, rng)}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(params["p_G"] + params["p_L"])

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        s = self.settings
        loss, grads = super().gradients(params, batch, classes, step)
        g = grads["p_G"]  # that of p_i, which is p_L's too
        draws = [
            generator(step.seed, "dp_fpl", client, step.server_round, step.step)
            for client in step.clients
        ]
        shape = (g.shape[-1], s.rank)
        start = torch.stack([torch.from_numpy(rng.normal(size=shape)) for rng in draws]).to(g)
        u, _ = torch.linalg.qr(params["p_L"] @ start)
        v = torch.linalg.qr(params["p_L"].mT @ u)[0].mT
        g_u, g_v = g @ v.mT, u.mT @ g
        if s.epsilon > 0:
            g, g_u, g_v = (clipped({"": part}, s.clip)[0][""] for part in (g, g_u, g_v))
            g_u, g_v = (gradient + s.std * self._noise(gradient, draws) for gradient in (g_u, g_v))
        return loss, {"p_G": g, "p_L": g_u @ v + u @ g_v - u @ (u.mT @ g_u) @ v}

    def why_not_per_image(self) -> str | None:
        if self.settings.epsilon > 0:
            return (
                "method.epsilon of dp_fpl, which clips the gradient of a batch and adds noise of "
                "its own; take method.epsilon=0"
            )
        return None

    def update_steps(self) -> Sequence[UpdateStep]:
        return [ServerNoise(self.settings)] if self.settings.epsilon > 0 else []

    def _noise(self, like: Tensor, seeded: Sequence[np.random.Generator]) -> Tensor:
        """Standard normal numbers, (K, ...); ``seeded``: a generator a client."""
        shape, repeat = tuple(like.shape[1:]), self.settings.seeded_noise
        draws = [standard_normal(shape, rng if repeat else None) for rng in seeded]
        return torch.stack(draws).to(like)

    def privacy(self, rounds: int) -> dict | None:
        s = self.settings
        if s.epsilon == 0:
            return None
        return {
            "unit": "none",
            "epsilon": None,
            "delta": None,
            "noise_multiplier": s.std / s.clip,
            "clip": s.clip,
            "sampling": None,
            "rate": None,
            "rounds": rounds,
            "accountant": None,
            "seeded": s.seeded_noise,
        }


class ServerNoise(UpdateStep):
    """The server's noise on the average, N(0, (lr std/|S|)^2)."""

    name = "dp_fpl"
    Settings = DPFPLSettings

    def on_server(self, aggregate: Update, context: ServerContext) -> tuple[Update, Metrics]:
        seeded = None
        if self.settings.seeded_noise:
            seeded = generator(context.seed, "dp_fpl server", context.server_round)
        noise = standard_normal(tuple(aggregate["p_G"].shape), seeded)
        deviation = context.lr * self.settings.std / len(context.clients)
        return {**aggregate, "p_G": aggregate["p_G"] + deviation * noise}, {}
