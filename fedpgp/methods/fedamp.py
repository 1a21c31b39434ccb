"""FedAMP on prompts: each client is drawn towards the prompts that are like its own (Huang et al.,
AAAI 2021, arXiv 2007.03797).

    a_ij = alpha/(n-1) exp(-|p_i - p_j|^2 / sigma)        n clients that have sent a prompt
    u_i  = (1 - sum_j a_ij) p_i + sum_j a_ij p_j           made by the server, for client i alone
    L    = CE(p_i) + lambda/2 |p_i - u_i|^2

Every client sends its own prompt: nothing is private. The global model is the average of
the prompts. (Public prompt-learning code turns the kernel's sign round and lets no
gradient through the pull.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, RoundContext, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.prompts import starting_context
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class FedAMPSettings:
    """Settings of FedAMP.

    Attributes:
        pull: lambda, weight of the pull towards u_i.
        sigma: width of the kernel.
        alpha: largest weight of the others in u_i, 0 to 1.
    """

    pull: float = 1.0
    sigma: float = 1.0
    alpha: float = 0.5

    def __post_init__(self):
        check_number("method.pull", self.pull, least=0)
        check_number("method.sigma", self.sigma, above=0)
        check_number("method.alpha", self.alpha, least=0, most=1)


@register("fedamp")
class FedAMP(PromptFL):
    """Shared: p_G (m, d), the average of the clients' prompts. Personal, and sent: p (m, d)."""

    about = About(
        title="FedAMP",
        paper="Huang et al., AAAI 2021",
        family="federated",
        shared="every client's context, sent",
        personal="nothing private",
        sent="m*d",
        official=(
            "declared difference: PanBikang/PromptFolio at 8f729aa has the kernel `1 - "
            "exp(+d/sigma)` and a pull without a gradient; none by the authors"
        ),
        order=9,
    )
    per_image = "shared"
    sent_copies = ("p",)
    needs_each_update = True
    starts_as_shared = True
    Settings = FedAMPSettings
    buffers = ("p_G", "u", "known")

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def init_server_state(self, clients: int) -> Params:
        return {
            "models": torch.zeros(clients, self.task.n_ctx, self.task.clip.width),
            "known": torch.zeros(clients),
        }

    def download_for(self, client: int, server_state: Params) -> Params:
        known, models = server_state["known"].clone(), server_state["models"]
        mine = models[client]
        others = known.clone()
        others[client] = 0
        closeness = (-(models - mine).square().sum((1, 2)) / self.settings.sigma).exp()
        a = self.settings.alpha / others.sum().clamp(min=1) * others * closeness
        return {
            "u": (1 - a.sum()) * mine + torch.einsum("n,nmd->md", a, models),
            "known": known[client].view(1, 1),
        }

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        towards = torch.where(params["known"] > 0, params["u"], params["p_G"])
        distance = (params["p"] - towards).square().sum((-2, -1))
        return self.settings.pull / 2 * distance

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, "p_G": params["p"]}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        models, known = (
            context.server_state["models"].clone(),
            context.server_state["known"].clone(),
        )
        models[context.clients], known[context.clients] = context.updates["p_G"], 1
        return averaged, {"models": models, "known": known}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(params["p"])
