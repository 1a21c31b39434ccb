"""pFedHN on FedPGP's term: the server keeps a network that writes each client's low-rank term
(Shamsian et al., ICML 2021, arXiv 2103.04628).

    theta_i = (U_0, V_0) + h(v_i; phi)          the term that client i is sent, and begins from
    p_i     = p_G + U_i V_i
    L       = CE(z_i) + mu L_con                FedPGP's loss, which trains p_G, U_i and V_i
    d phi   = rate mean_i (d theta_i / d phi)^T d theta_i

d theta_i is the change of the term in the client's training; it is sent to the server with p_G. v_i
describes the client (text features of its classes, its mean image feature, or its images of each
class), or is learned with phi, by the same rule, from N(0, 1/n) on. h is a network of ReLU layers
that starts at 0 and stays on the server. A client predicts with its term as it was after its own
training.

A description comes with a client's first answer; until then the client begins at (U_0, V_0). The
network reads descriptions at mean 0 and mean length 1 over the clients that the server knows. With
``server_steps`` above 1 phi goes on descending towards where the clients came to
(:func:`fedpgp.hypernetwork.follow`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.hypernetwork import follow, hypernetwork, hypernetwork_start
from fedpgp.methods.about import About
from fedpgp.methods.base import LoadClientBatch, Params, RoundContext, StepContext, register
from fedpgp.methods.fedpgp import GUIDANCES, FedPGP
from fedpgp.seeding import generator
from fedpgp.task import ClassSet

DESCRIPTIONS = ("names", "features", "histogram", "learned")


@dataclass(frozen=True)
class PFedHNSettings:
    """Settings of pFedHN.

    Attributes:
        rank, mu, tau, guidance, personal_init: as FedPGP's.
        description: v_i is made of the ``names`` of the client's classes (the mean of their text
            features), of its image ``features`` (their mean), the ``histogram`` of its images over
            the classes, or ``learned``.
        embedding: numbers of a learned v_i (the public code: 1 + a quarter of the clients).
        hidden: width of the network's hidden layers.
        layers: how many there are.
        server_lr: rate of phi.
        server_steps: descents of phi in a round.
    """

    rank: int = 8
    mu: float = 0.5
    tau: float = 0.5
    guidance: str = "plain"
    personal_init: str = "normal"
    description: str = "names"
    embedding: int = 8
    hidden: int = 100
    layers: int = 4
    server_lr: float = 0.01
    server_steps: int = 1

    personal: ClassVar[str] = "low_rank"
    contrast: ClassVar[str] = "both"
    images_a_rank: ClassVar[int] = 0

    def __post_init__(self):
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.mu", self.mu, least=0)
        check_number("method.tau", self.tau, above=0)
        check_choice("method.guidance", self.guidance, GUIDANCES)
        check_choice("method.personal_init", self.personal_init, ("zero", "normal"))
        check_choice("method.description", self.description, DESCRIPTIONS)
        check_number("method.embedding", self.embedding, least=1, whole=True)
        check_number("method.hidden", self.hidden, least=1, whole=True)
        check_number("method.layers", self.layers, least=0, whole=True)
        check_number("method.server_lr", self.server_lr, above=0)
        check_number("method.server_steps", self.server_steps, least=1, whole=True)


@register("pfedhn")
class PFedHN(FedPGP):
    """Shared: p_G (m, d); U_0 (m, b) and V_0 (b, d), which stay as they are: a client answers with
    them and the change of its term. Personal, and known to the server: U (m, b), V (b, d)."""

    about = About(
        title="pFedHN",
        paper="Shamsian et al., ICML 2021",
        family="federated",
        shared="context, every client's term",
        personal="nothing private",
        sent="m*d + rank*(m + d) + {'histogram': C, 'learned': 0}.get(description, e)",
        passes="2; 1 with `method.mu=0`",
        official=(
            "declared difference: AvivSham/pFedHN at 07b53d6 writes all weights of small CNNs, for "
            "one client a step"
        ),
        order=33,
    )
    per_image = None
    small = {"rank": 2, "hidden": 8}
    sent_copies = ("U", "V")
    needs_each_update = True
    starts_as_shared = True
    precomputes_for_evaluation = False
    delta_params = ("v",)
    Settings = PFedHNSettings
    settings: PFedHNSettings

    def __init__(self, settings: PFedHNSettings, task):
        super().__init__(settings, task)
        self.buffers = (
            *("U_0", "V_0", "h.U", "h.V", "known", "begun.U", "begun.V"),
            *(() if settings.description == "learned" else ("v",)),
        )

    def init_shared(self, rng: np.random.Generator) -> Params:
        shared, start = super().init_shared(rng), self.term.start(rng)
        shared |= {"U_0": start["U"], "V_0": start["V"]}
        if self.settings.description != "learned":
            shared["v"] = torch.zeros(self._described)
        return shared

    @property
    def _described(self) -> int:
        """Numbers of a description that is not learned."""
        histogram = self.settings.description == "histogram"
        return len(self.task.class_names) if histogram else self.task.clip.embed

    def init_personal(self, rng: np.random.Generator) -> Params:
        start = self.init_shared(rng)
        return {"U": start["U_0"], "V": start["V_0"]}

    # The client. ----------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        known, found = params["known"] > 0, {}
        for name in ("U", "V"):
            written = params[f"{name}_0"] + params[f"h.{name}"]
            found[name] = torch.where(known, written, params[name])
            found[f"begun.{name}"] = found[name]
        kind = self.settings.description
        if kind == "learned":
            return found
        batch = load_batch(images=kind == "features")
        if kind == "features":
            mean = torch.einsum("kb,kbe->ke", batch.weights, batch.images.features)
            return {**found, "v": F.normalize(mean, dim=-1)}
        if kind == "names":
            features = batch.seen(len(classes.ids)) @ classes.template_features
            return {**found, "v": F.normalize(features, dim=-1)}
        labels = torch.tensor(classes.ids, device=batch.labels.device)[batch.labels]
        histogram = batch.weights.new_zeros(len(labels), self._described)
        return {**found, "v": histogram.scatter_add(1, labels, batch.weights)}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        changed = {
            f"{name}_0": params[f"{name}_0"] + params[name] - params[f"begun.{name}"]
            for name in ("U", "V")
        }
        return {**params, **changed}

    def why_not_per_image(self) -> str:
        return f"method={self.name}: the server is told what describes a client, without noise"

    # The server. ----------------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        """Return v (N, n), whether each client is known, and phi: zeros until the first round draws
        it, as h is then."""
        s = self.settings
        size = s.embedding if s.description == "learned" else self._described
        zeros = {n: torch.zeros(t.shape) for n, t in self._start(size, generator(0, "")).items()}
        return {"v": torch.zeros(clients, size), "known": torch.zeros(clients), **zeros}

    def _start(self, size: int, rng: np.random.Generator) -> Params:
        s, outputs = self.settings, self.settings.rank * (self.task.n_ctx + self.task.clip.width)
        return hypernetwork_start(size, s.hidden, s.layers, outputs, rng)

    def download_for(self, client: int, server_state: Params) -> Params:
        u, v = self.factors(self.begun(server_state, [client]))
        return {"h.U": u[0], "h.V": v[0], "known": server_state["known"][client].view(1, 1)}

    def begun(self, server_state: Params, clients: Sequence[int]) -> Tensor:
        """Return what the network adds to (U_0, V_0) where clients begin, (S, b m + b d)."""
        return self.written(server_state, server_state["v"][list(clients)])

    def ended(self, server_state: Params, clients: Sequence[int], updates: Params) -> Tensor:
        """Return what it should add where clients came to; as :meth:`begun`."""
        return self.begun(server_state, clients)

    def written(self, server_state: Params, v: Tensor) -> Tensor:
        """Return h(v): (S, n) -> (S, b m + b d)."""
        return hypernetwork(network(server_state), self.standardised(server_state, v))

    def standardised(self, server_state: Params, v: Tensor) -> Tensor:
        """Return descriptions (S, n) as the network reads them."""
        known = server_state["v"][server_state["known"] > 0]
        if self.settings.description == "learned" or not len(known):
            return v
        centre = known.mean(0)
        return (v - centre) / (known - centre).square().sum(1).mean().sqrt().clamp(min=1e-6)

    def factors(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return U (S, m, b) and V (S, b, d) of all numbers of a term (S, b m + b d)."""
        m, b = self.task.n_ctx, self.settings.rank
        u, v = numbers.split([m * b, numbers.shape[-1] - m * b], dim=-1)
        return u.unflatten(-1, (m, b)), v.unflatten(-1, (b, -1))

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        sent, clients, s = context.global_params, list(context.clients), self.settings
        state = {name: tensor.clone() for name, tensor in context.server_state.items()}
        if not state["known"].any():
            state |= self._drawn(state, context.seed)
        begun = self.begun(state, clients)
        # A client that was not known began at the start, whatever the network writes for it.
        begun = torch.where(state["known"][clients].unsqueeze(-1) > 0, begun, 0)
        state["known"][clients] = 1
        learned = network(state)
        if s.description == "learned":
            learned["v"] = state["v"]
        else:
            state["v"][clients] = context.updates["v"]
        changes = [context.updates[n] - sent[n] for n in ("U_0", "V_0")]
        state |= follow(
            learned,
            lambda phi: self.ended({**state, **phi}, clients, context.updates),
            begun + torch.cat([each.flatten(1) for each in changes], dim=1),
            rate=s.server_lr,
            steps=s.server_steps,
        )
        return {**averaged, **{n: sent[n] for n in sent if n != "p_G"}}, state

    def _drawn(self, state: Params, seed: int) -> Params:
        """Return phi, and learned v, as they are before the first round."""
        v, rng = state["v"], generator(seed, "hypernetwork")
        drawn = {n: t.to(v.dtype) for n, t in self._start(v.shape[1], rng).items()}
        if self.settings.description == "learned":
            # Mean length 1, as descriptions: longer ones diverge at the same rate.
            own = rng.standard_normal(tuple(v.shape)) / np.sqrt(v.shape[1])
            drawn["v"] = torch.from_numpy(own).to(v.dtype)
        return drawn


def network(server_state: Params) -> Params:
    """Return phi of a server state."""
    return {n: t for n, t in server_state.items() if n.startswith("h.")}
