"""FedPGP: a shared prompt, a private low-rank term, a prompt-wise contrastive loss (Cui et al., ICML 2024, arXiv
2405.09771).

    p_i = p_G + U_i V_i                      the personal context of client i
    z_G = g(p_G),  z_i = g(p_i)              text features under the global and the personal context
    z_C = g("a photo of a {class}.")         frozen guidance: CLIP's own knowledge
    L   = CE(z_i) + mu * L_con               cross-entropy of the personal prompt, and
    L_con = mean_c -log( e^{cos(z_G, z_C)/tau} / (e^{cos(z_G, z_C)/tau} + e^{cos(z_G, z_i)/tau}) )

The client trains p_G, U_i and V_i together; p_G goes to the server, U_i and V_i stay.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods.base import Batch, Method, Params, Step
from fedpgp.prompts import low_rank_term, personal_context, starting_context
from fedpgp.task import Candidates


@dataclass(frozen=True)
class FedPGPSettings:
    """Settings of FedPGP.

    Attributes:
        rank: b, the rank of the personal term.
        mu: weight of the contrastive loss.
        tau: its temperature.
        guidance: z_C is ``photo`` (the data set's template, as the paper says) or ``context`` ("X X … {class}.", as the
            public code does).
        personal_init: ``zero`` (U = 0, V normal: starts at the global prompt) or ``normal`` (both N(0, 0.02²), as the
            public code does).
    """

    rank: int = 8
    mu: float = 1.0
    tau: float = 0.5
    guidance: str = "photo"
    personal_init: str = "zero"

    def __post_init__(self):
        check_number("method.tau", self.tau, above=0)
        check_number("method.mu", self.mu, least=0)
        if self.guidance not in ("photo", "context"):
            raise FedPGPError(f"method.guidance={self.guidance!r} is unknown; choose 'photo' or 'context'")


class FedPGP(Method):
    """Shared: p_G (m, d). Personal: U (m, b), V (b, d)."""

    name = "fedpgp"
    Settings = FedPGPSettings
    settings: FedPGPSettings

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {"p_G": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def init_personal(self, rng: np.random.Generator) -> Params:
        u, v = low_rank_term(
            self.task.n_ctx, self.task.clip.width, self.settings.rank, self.settings.personal_init, rng
        )
        return {"U": u, "V": v}

    def loss(self, params: Params, batch: Batch, classes: Candidates, step: Step) -> Tensor:
        p_G = params["p_G"]
        p_i = personal_context(p_G, params["U"], params["V"])
        if self.settings.mu == 0:
            z_i = self._encode(p_i, classes)
            return cross_entropy(self.logits(z_i, batch.images, classes), batch.labels, batch.weights)
        z_G, z_i = self._encode(torch.stack([p_G, p_i]), classes)
        ce = cross_entropy(self.logits(z_i, batch.images, classes), batch.labels, batch.weights)
        return ce + self.settings.mu * prompt_contrastive_loss(z_G, self.guidance(classes), z_i, self.settings.tau)

    def guidance(self, classes: Candidates) -> Tensor:
        """z_C, (classes, embed): frozen, so that gradients reach p_G, U and V through z_G and z_i alone."""
        return classes.photo if self.settings.guidance == "photo" else classes.placeholder

    def global_features(self, shared: Params, classes: Candidates) -> Tensor:
        return self._encode(shared["p_G"], classes)

    def personal_features(self, params: Params, classes: Candidates) -> Tensor:
        return self._encode(personal_context(params["p_G"], params["U"], params["V"]), classes)

    def _encode(self, context: Tensor, classes: Candidates) -> Tensor:
        return classes.encoder(context.shape[-2])(context)
