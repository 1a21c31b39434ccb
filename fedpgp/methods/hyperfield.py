"""A hypernetwork field on FedPGP's term: one call of the server's network gives a client's term
after any number of training steps (HyperNet Fields, Hedlin et al., arXiv 2412.17040, trained in a
federation as :mod:`fedpgp.methods.pfedhn` is).

    theta_i(t) = (U_0, V_0) + t/T H(t/T, v_i; phi)         theta_i(0) is where every term begins
    L          = CE(z_i) + mu L_con at p_G + U_i V_i        FedPGP's loss, from theta_i(t_i) on
    phi        : theta_i(t_i + s_i) = sg[theta_i(t_i)] + d theta_i

In a round client i begins at theta_i(t_i), t_i drawn from 0 .. T - 1, makes s_i steps, and answers
with their number and the change d theta_i. With one plain step that is the paper's condition: the
field moves by -lr grad L(theta_i(t)) from t to t + 1. No trajectory is stored or shared.

A client predicts with its term as it was after its own training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.hypernetwork import hypernetwork
from fedpgp.methods.about import About
from fedpgp.methods.base import Batch, Params, RoundContext, StepContext, register
from fedpgp.methods.pfedhn import PFedHN, PFedHNSettings, network
from fedpgp.seeding import generator
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class HyperFieldSettings(PFedHNSettings):
    """Settings of the field: those of pFedHN, and

    Attributes:
        horizon: T, the steps that it describes.
    """

    horizon: int = 50

    def __post_init__(self):
        super().__post_init__()
        check_number("method.horizon", self.horizon, least=1, whole=True)


@register("hyperfield")
class HyperField(PFedHN):
    """As pFedHN's, and shared: the number of steps that a client made, (1, 1)."""

    about = About(
        title="Hypernetwork field",
        paper="Hedlin et al., CVPR 2025, in a federation",
        family="federated",
        shared="context, every client's term",
        personal="nothing private",
        sent="m*d + rank*(m + d) + {'histogram': C, 'learned': 0}.get(description, e) + 1",
        passes="2; 1 with `method.mu=0`",
        official="no code exists of a federated one",
        order=34,
    )
    per_image = None
    delta_params = ("v", "steps")
    Settings = HyperFieldSettings
    settings: HyperFieldSettings

    def __init__(self, settings: HyperFieldSettings, task):
        super().__init__(settings, task)
        self.buffers += ("steps",)

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**super().init_shared(rng), "steps": torch.zeros(1, 1)}

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        params["steps"] += 1
        return super().gradients(params, batch, classes, step)

    # The server. ----------------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        """Return that of pFedHN, and the step t at which each client's next training begins."""
        return {**super().init_server_state(clients), "t": torch.zeros(clients)}

    def _start(self, size: int, rng: np.random.Generator) -> Params:
        return super()._start(size + 1, rng)

    def begun(self, server_state: Params, clients: Sequence[int]) -> Tensor:
        v, t = (server_state[name][list(clients)] for name in ("v", "t"))
        return self.field(server_state, v, t)

    def ended(self, server_state: Params, clients: Sequence[int], updates: Params) -> Tensor:
        v, t = (server_state[name][list(clients)] for name in ("v", "t"))
        return self.field(server_state, v, t + updates["steps"].flatten())

    def field(self, server_state: Params, v: Tensor, t: Tensor) -> Tensor:
        """Return theta(t) - theta(0) for v (S, n) and t (S,) steps, (S, b m + b d)."""
        time = (t / self.settings.horizon).unsqueeze(-1)
        read = torch.cat([self.standardised(server_state, v), 2 * time - 1], dim=-1)
        return time * hypernetwork(network(server_state), read)

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        shared, state = super().update_server(averaged, context)
        rng = generator(context.seed, "times of the field", context.server_round)
        times = torch.from_numpy(rng.integers(self.settings.horizon, size=len(state["t"])))
        return shared, {**state, "t": times.to(state["t"].dtype) * state["known"]}
