"""HiLoRA: three low-rank adapters a layer, of all clients, of a cluster and of one client, trained
one after the other (Peng et al., CVPR 2026, arXiv 2603.02785), here in CLIP's towers.

    W_i = W + (alpha / b) (B_r A_r + B_c A_c + B_l A_l)        root, cluster c of client i, leaf
    L_r = CE
    L_c = CE + gamma_cluster |B_r^T B_c|^2
    L_l = CE + gamma_cluster |B_r^T B_l|^2 + gamma_leaf |B_c^T B_l|^2

Rounds are of the root, then of the cluster, then of the leaf: one adapter learns, with its own
loss, and the others stand still. Root and cluster are averaged as products, of all clients or of
the cluster's own:

    sum_i w_i B_i A_i = U Sigma V^T;   B <- U,  A <- Sigma V^T,   to rank b

The signs of U's columns, which are free, are those that are nearer to the B before.
Clusters are found when the root's rounds are over, from the columns of the clients' own B in them:

    M_i  = decay M_i + (1 - decay) B_i / |B_i|                 each round in which i takes part
    a_ij = how near the columns of M_i and M_j are             fedpgp/methods/lora_subspaces.py

by spectral clustering of a, as many as its eigengap says. A client that the server knows nothing of
by then begins a cluster's round at a new adapter, and joins the cluster whose M_j are nearest to
what it sends; its first update does not count. What a client sends is the root and what it changed
of it or of its cluster's adapter; the leaf never leaves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Classifier,
    LoadClientBatch,
    Params,
    RoundContext,
    StepContext,
    register,
)
from fedpgp.methods.lora import LoRA, LoRASettings
from fedpgp.methods.lora_products import best_basis
from fedpgp.methods.lora_subspaces import affinities, distances, overlap, unit
from fedpgp.seeding import generator
from fedpgp.spectral_clusters import spectral_clusters
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

CLUSTER, LEAF = "cluster.", "leaf."
"""Prefixes of the names of a client's adapters beside the root's."""
GIVEN, BEGUN = "given.", "begun."
"""Prefixes of its cluster's adapter as it was sent, and as the client began the round with it."""
CLUSTERS, SEEN = "clusters.", "seen."
"""In the server state: every cluster's adapter, (1 + clusters, ...), of which the first is that of
clients in none; and M_i, (clients, L, out, b)."""
ROOT_STAGE, CLUSTER_STAGE, LEAF_STAGE = range(3)
PREFIXES = ("", CLUSTER, LEAF)
"""Stage -> the prefix of the adapter that learns."""


@dataclass(frozen=True)
class HiLoRASettings(LoRASettings):
    """Settings of HiLoRA.

    Attributes:
        root, cluster: fractions of the run's rounds in which the root and the cluster's adapter
            learn; the leaf does in the others, which are one at least.
        gamma_cluster: weight of the overlaps with the root.
        gamma_leaf: of the leaf's overlap with the cluster's adapter.
        decay: of earlier rounds in what clusters are found from.
        tolerance: a stage ends early after a round that changes the products by less than this
            fraction; 0: never.
    """

    root: float = 0.4
    cluster: float = 0.4
    gamma_cluster: float = 0.1
    gamma_leaf: float = 0.1
    decay: float = 0.5
    tolerance: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_number("method.root", self.root, above=0, most=1)
        check_number("method.cluster", self.cluster, least=0, most=1)
        if self.root + self.cluster > 1:
            raise FedPGPError(
                f"method.root={self.root} and method.cluster={self.cluster} are fractions of the "
                "rounds, and together they are more than 1"
            )
        check_number("method.gamma_cluster", self.gamma_cluster, least=0)
        check_number("method.gamma_leaf", self.gamma_leaf, least=0)
        check_number("method.decay", self.decay, least=0, below=1)
        check_number("method.tolerance", self.tolerance, least=0)


@register("hilora")
class HiLoRA(LoRA):
    """Shared: the root's A (L, b, in) and B (L, out, b) of each layer. Personal: the leaf's. Sent
    to a client alone: its cluster's, and the stage."""

    about = About(
        title="HiLoRA",
        paper="Peng et al., CVPR 2026",
        family="lora",
        learns=("LoRA",),
        shared="A and B of the root, and of each cluster",
        personal="A and B of a leaf",
        sent="2*L*len(targets)*rank*d",
        official="no code exists; the equations as public notes of the paper give them",
    )
    per_image = "shared"
    needs_each_update = True
    averages_itself = "its server averages the products B A of the root, or of each cluster"
    private = (CLUSTER, LEAF)
    Settings = HiLoRASettings
    settings: HiLoRASettings

    @property
    def buffers(self) -> tuple[str, ...]:
        prefixes = (GIVEN, BEGUN, CLUSTER)
        return ("stage", *(f"{prefix}{name}" for prefix in prefixes for name in self._names))

    @property
    def _names(self) -> list[str]:
        """Of one adapter's tensors."""
        return [f"{place}.{part}" for place in self.places for part in "AB"]

    def trainable(self, params: Params) -> list[str]:
        """Return the names of the adapter of the round's stage, one for the whole federation; all
        that ever learn and are kept, where nobody has said the stage."""
        if "stage" not in params:
            return super().trainable(params)
        return [f"{PREFIXES[stage_in(params)]}{name}" for name in self._names]

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}

    def init_personal(self, rng: np.random.Generator) -> Params:
        leaf = {**self.start_A(rng), **self.start_B()}
        return {f"{LEAF}{name}": tensor for name, tensor in leaf.items()}

    # The client. ----------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        found: Params = {}
        for name in self._names:
            given = params.get(f"{GIVEN}{name}")
            begun = torch.zeros_like(params[name]) if given is None else given
            found |= {f"{CLUSTER}{name}": begun, f"{BEGUN}{name}": begun}
        return found

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        """The overlaps of the adapter that learns with those that stand still."""
        s, stage = self.settings, stage_in(params)
        if stage == ROOT_STAGE:
            return None
        B = {prefix: [params[f"{prefix}{p}.B"] for p in self.places] for prefix in PREFIXES}
        if stage == CLUSTER_STAGE:
            return s.gamma_cluster * overlap(B[""], B[CLUSTER])
        return s.gamma_cluster * overlap(B[""], B[LEAF]) + s.gamma_leaf * overlap(
            B[CLUSTER], B[LEAF]
        )

    def finish_client(self, params: Params, step: StepContext) -> Params:
        changed = {
            name: params[name] + params[f"{CLUSTER}{name}"] - params[f"{BEGUN}{name}"]
            for name in self._names
        }
        return {**params, **changed}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Classifier:
        return self.classifier(self.adapters(params, *self.private), classes)

    def step_work(self, size: StepSize) -> Work:
        return self.work(size, 3 * self.settings.rank, trained=1 / 3)

    # The server. ----------------------------------------------------------------------------------

    @classmethod
    def depends_on_rounds(cls, settings: HiLoRASettings) -> bool:
        return True

    def init_server_state(self, clients: int) -> Params:
        """Return the stage, and of each client whether its M_i is known, its cluster (from 1; 0:
        none) and M_i."""
        seen = {
            f"{SEEN}{name.removesuffix('.B')}": torch.zeros(clients, *tensor.shape)
            for name, tensor in self.start_B().items()
        }
        each = {"known": torch.zeros(clients), "cluster": torch.zeros(clients)}
        return {"stage": torch.zeros(1), **each, **seen}

    def download_for(self, client: int, server_state: Params) -> Params:
        told = {"stage": server_state["stage"]}
        if self._clustered(server_state):
            mine = int(server_state["cluster"][client])
            for name in self._names:
                told[f"{GIVEN}{name}"] = server_state[f"{CLUSTERS}{name}"][mine]
        return told

    def _clustered(self, server_state: Params) -> bool:
        return f"{CLUSTERS}{self._names[0]}" in server_state

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        state = {name: tensor.clone() for name, tensor in context.server_state.items()}
        stage, shared, change = int(state["stage"]), context.global_params, float("inf")
        if stage == ROOT_STAGE:
            self._look_at(context.clients, context.updates, state)
            shared, change = self._averaged(context.weights, context.updates, shared)
        elif stage == CLUSTER_STAGE:
            change = self._average_clusters(context, state)
        stage += change < self.settings.tolerance
        stage = max(stage, self.stage_of(context.server_round + 1, context.num_rounds))
        if stage > ROOT_STAGE and not self._clustered(state):
            state |= self._found_clusters(state, context.seed)
        return shared, {**state, "stage": torch.tensor([float(stage)])}

    def stage_of(self, server_round: int, num_rounds: int) -> int:
        """Return what learns in a round where no stage ends early. In the last round of a run of
        two or more it is the leaf."""
        s, last = self.settings, max(1, num_rounds - 1)
        root = min(max(1, round(s.root * num_rounds)), last)
        cluster = min(max(root, round((s.root + s.cluster) * num_rounds)), last)
        return (server_round > root) + (server_round > cluster)

    def _averaged(self, weights: Tensor, sent: Params, before: Params) -> tuple[Params, float]:
        """The nearest adapter to the mean of the products of those that were sent, (S, ...), and
        by which fraction of the product before it changes it."""
        after: Params = {}
        moved = length = 0.0
        for place in self.places:
            names = f"{place}.A", f"{place}.B"
            newest = (sent[name] for name in names)
            A, B = best_basis(weights, *newest, self.settings.rank, before[names[1]])
            old = before[names[1]].double() @ before[names[0]].double()
            moved += float((B @ A - old).square().sum())
            length += float(old.square().sum())
            after |= dict(zip(names, (A, B), strict=True))
        return after, (moved / max(length, 1e-24)) ** 0.5

    def _average_clusters(self, context: RoundContext, state: Params) -> float:
        """Put each cluster's next adapter into the state; the largest of their changes."""
        clusters = state["cluster"][list(context.clients)].long()
        changed = {n: context.updates[n] - context.global_params[n] for n in self._names}
        found = []
        for cluster in clusters.unique().tolist():
            chosen = clusters == cluster
            before = {name: state[f"{CLUSTERS}{name}"][cluster] for name in self._names}
            sent = {name: before[name] + changed[name][chosen] for name in self._names}
            if cluster == 0:
                self._join(torch.tensor(context.clients)[chosen].tolist(), sent, state)
                continue
            weights = context.weights[chosen]
            after, change = self._averaged(weights / weights.sum(), sent, before)
            found.append(change)
            for name in self._names:
                state[f"{CLUSTERS}{name}"][cluster] = after[name].to(before[name])
        return max(found, default=float("inf"))

    # Clusters. ------------------------------------------------------------------------------------

    def _look_at(self, clients: Sequence[int], sent: Params, state: Params) -> None:
        """Put M_i of clients that sent an adapter into the state."""
        clients = list(clients)
        known = state["known"][clients].view(-1, 1, 1, 1) > 0
        for place in self.places:
            kept = state[f"{SEEN}{place}"]
            now, before = unit(sent[f"{place}.B"]).to(kept), kept[clients]
            decayed = self.settings.decay * before + (1 - self.settings.decay) * now
            kept[clients] = torch.where(known, decayed, now)
        state["known"][clients] = 1

    def _found_clusters(self, state: Params, seed: int) -> Params:
        """Return each client's cluster, and where the clusters' adapters begin."""
        known = state["known"].nonzero().squeeze(-1)
        mine = self._directions(state, known)
        clusters = spectral_clusters(affinities(distances(mine, mine)).numpy())
        cluster = torch.zeros_like(state["cluster"])
        cluster[known] = torch.from_numpy(clusters + 1).to(cluster)
        start = {**self.start_A(generator(seed, "hilora clusters")), **self.start_B()}
        count = 2 + int(clusters.max(initial=0))
        begun = {f"{CLUSTERS}{n}": t.repeat(count, 1, 1, 1) for n, t in start.items()}
        return {"cluster": cluster, **begun}

    def _join(self, clients: Sequence[int], sent: Params, state: Params) -> None:
        """Give clients in no cluster the one whose members are nearest, which a mean says."""
        members = state["cluster"].nonzero().squeeze(-1)
        self._look_at(clients, sent, state)
        if not len(members):  # all have left
            return
        d = distances(
            self._directions(state, torch.tensor(clients)), self._directions(state, members)
        )
        numbers = state["cluster"][members]
        choices = numbers.unique()
        means = torch.stack([d[:, numbers == number].mean(1) for number in choices], dim=1)
        state["cluster"][list(clients)] = choices[means.argmin(1)]

    def _directions(self, state: Params, clients: Tensor) -> list[Tensor]:
        """M_i of clients, of each layer."""
        return [state[f"{SEEN}{place}"][clients] for place in self.places]


def stage_in(params: Params) -> int:
    """Return the stage that all clients of a cohort are in."""
    return int(params["stage"].flatten()[0].round())
