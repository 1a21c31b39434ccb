"""FedALT: a client goes on with its own low-rank adapter, beside one of the rest of the world that
stands still; each token mixes the two (Bian et al., AAAI 2026, arXiv 2503.11880), here in CLIP's
towers.

    h   = W x + (alpha / b) (g_0 B_o A_o x + g_1 B_i A_i x),   (g_0, g_1) = softmax(G_i x)
    A_o = mean over the other clients of A_j,  B_o likewise     made by the server, for i alone

A_i, B_i and the gates G_i of each layer learn; A_i and B_i are sent, G_i stays. The mean is of the
newest adapters of all others that have ever sent one, counted alike; before there is one, B_o is
zero. There is no global model: no client begins at an average.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedpgp.methods.about import About
from fedpgp.methods.base import Classifier, Params, RoundContext, StepContext, register
from fedpgp.methods.lora import LoRA, LoRASettings
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

OWN, OTHERS, GATE = "own.", "others.", "gate."
"""Prefixes of the names of a client's own adapters, of the rest of the world's, and of gates."""
NEWEST = "newest."
"""In the server state: what each client sent last, (clients, ...)."""


@dataclass(frozen=True)
class FedALTSettings(LoRASettings):
    """Settings of FedALT.

    Attributes:
        alpha: an adapter counts alpha / b; of the public code.
    """

    alpha: float = 32


@register("fedalt")
class FedALT(LoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer, the mean of what clients sent.
    Personal: A and B, as they are sent, and the gates (L, 2, in)."""

    about = About(
        title="FedALT",
        paper="Bian et al., AAAI 2026",
        family="lora",
        learns=("LoRA",),
        shared="every client's A and B, sent",
        personal="gates",
        sent="2*L*len(targets)*rank*d",
        official=(
            "declared difference: adapters are in CLIP's towers and without dropout, gated and "
            "averaged as in jmbian/FedALT at ff9b486"
        ),
    )
    per_image = "shared"
    needs_each_update = True
    equal_weights = True
    starts_as_shared = True
    averages_itself = "its server gives each client the mean of the others' adapters"
    no_shared_start = (
        "lets clients begin at adapters of their own, and no model reads the mean of all"
    )
    no_class_embeddings = "a client's adapter says nothing without its gates"
    Settings = FedALTSettings
    settings: FedALTSettings

    @property
    def _names(self) -> list[str]:
        """Of one adapter's tensors."""
        return [f"{place}.{part}" for place in self.places for part in "AB"]

    @property
    def sent_copies(self) -> tuple[str, ...]:
        return tuple(f"{OWN}{name}" for name in self._names)

    @property
    def buffers(self) -> tuple[str, ...]:
        return (*self._names, *(f"{OTHERS}{name}" for name in self._names))

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}

    def init_personal(self, rng: np.random.Generator) -> Params:
        own = {f"{OWN}{name}": tensor for name, tensor in self.init_shared(rng).items()}
        gates = self.start_A(rng, 2)  # as A starts
        return own | {f"{GATE}{name.removesuffix('A')}G": t for name, t in gates.items()}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, **{name: params[f"{OWN}{name}"] for name in self._names}}

    # The server. ----------------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        start = {**self.start_A(np.random.default_rng(0)), **self.start_B()}
        newest = {f"{NEWEST}{n}": torch.zeros(clients, *t.shape) for n, t in start.items()}
        return {"known": torch.zeros(clients), **newest}

    def download_for(self, client: int, server_state: Params) -> Params:
        others = server_state["known"].clone()
        others[client] = 0
        weights = others / others.sum().clamp(min=1)
        return {
            f"{OTHERS}{name}": torch.einsum("n,n...->...", weights, server_state[f"{NEWEST}{name}"])
            for name in self._names
        }

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        state = {name: tensor.clone() for name, tensor in context.server_state.items()}
        for name in self._names:
            state[f"{NEWEST}{name}"][context.clients] = context.updates[name]
        state["known"][context.clients] = 1
        return averaged, state

    # The model. -----------------------------------------------------------------------------------

    def adapters(self, params: Params, *more: str) -> Params:
        """Return both adapters of each layer as one of twice the rank, and ``"TOWER.LAYER.G"``."""
        factor, tensors = self.settings.alpha / self.settings.rank, {}
        for place in self.places:
            A, B = (
                [params[f"{prefix}{place}.{part}"] for prefix in (OTHERS, OWN)] for part in "AB"
            )
            tensors[f"{place}.A"] = torch.cat(A, dim=-2)
            tensors[f"{place}.B"] = factor * torch.cat(B, dim=-1)
            tensors[f"{place}.G"] = params[f"{GATE}{place}.G"]
        return tensors

    def global_classifier(self, shared: Params, classes: ClassSet) -> None:
        """There is none: no client uses the mean of all."""
        return None

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        return self.classifier(self.adapters(params), classes)

    def step_work(self, size: StepSize) -> Work:
        work = self.work(size, 2 * self.settings.rank, trained=0.5)
        for tower, at in self.placements.items():
            for layer, rows in self.rows(size, tower).items():
                work += size.layer(rows, at.sizes(layer)[0], 2)
        return work
