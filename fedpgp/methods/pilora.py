"""PILoRA: prototypes, and low-rank adapters of each task (Guo et al., ECCV 2024, arXiv 2401.02094).

    x   = f(pixels; W + B_t A_t)              the image's feature in task t, unit norm
    d_c = |x - c_c|                           to the prototype of class c
    L   = CE(-d) + pull d_y + sparse |A_t|_1 + orthogonal sum_{s<t} |A_s A_t^T|_1
    answer: the nearest prototype to f(pixels; W + (sum_s B_s) (sum_s A_s)), over tasks begun

A and B are of queries and values in the image tower's first blocks. In task t, A_t and B_t learn,
and the prototypes of classes that are new or of which the client has images; all else stands still.

    server: A, B  averages;  c_c = sum_i w_ci c_ci
            w_c = softmax_i(minmax_i(1 / sum_j |c_ci - m_cj|) / tau)

m_cj is the mean feature that client j had of its images of class c while it trained; it sends these
means. Where no client has images of c, or all distances are equal, w_c is uniform. A class that
nobody has had images of is answered with its text.

Declared differences: the public code takes features of DINO's tower, before they are of unit norm
(their norm is about the root of their length, by which it divides the distance); its answers add
the adapters of the first and of the recent task alone; prototypes of classes to come count in its
loss, where here those of the classes that the client has seen do.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    PHASE,
    Batch,
    Images,
    LoadClientBatch,
    Method,
    Params,
    RoundContext,
    StepContext,
    register,
)
from fedpgp.methods.class_sums import class_sums
from fedpgp.step_work import StepSize, Work, tower_gflop
from fedpgp.task import ClassSet
from fedpgp.towers.adapters import Adapters, Placement
from fedpgp.towers.image import ImageTower, check_depth

LAYERS = ("q", "v")
"""The layers with adapters."""
TENSORS = tuple(f"{layer}.{factor}" for layer in LAYERS for factor in "AB")


@dataclass(frozen=True)
class PILoRASettings:
    """Settings of PILoRA.

    Attributes:
        blocks: first blocks of the image tower, which have adapters.
        rank: b, of an adapter.
        pull: weight of the distance to the own class's prototype.
        sparse: of the sum of the absolute values of A.
        orthogonal: of the overlaps of A with earlier tasks' A.
        prototype_rate: learning rate of the prototypes relative to the adapters'.
        tau: temperature of the weights of clients in a prototype.
    """

    blocks: int = 1
    rank: int = 4
    pull: float = 0.001
    sparse: float = 0.01
    orthogonal: float = 0.5
    prototype_rate: float = 200.0
    tau: float = 0.2

    def __post_init__(self):
        check_number("method.blocks", self.blocks, least=1, whole=True)
        check_number("method.rank", self.rank, least=1, whole=True)
        for name in ("pull", "sparse", "orthogonal"):
            check_number(f"method.{name}", getattr(self, name), least=0)
        check_number("method.prototype_rate", self.prototype_rate, above=0)
        check_number("method.tau", self.tau, above=0)


@register("pilora")
class PILoRA(Method):
    """Shared: ``LAYER.A`` (tasks, L, b, W) and ``LAYER.B`` (tasks, L, W, b), prototypes ``c``
    (classes, e), ``means`` (classes, e): zeros for a class without images. Personal: classes that
    the client has seen."""

    about = About(
        title="PILoRA",
        paper="Guo et al., ECCV 2024",
        family="lifelong",
        learns=("LoRA", "heads"),
        shared="A and B of each task, class prototypes and means",
        personal="nothing private",
        sent="T*4*blocks*rank*W + 2*C*e",
        passes="none",
        official=(
            "declared difference: Ghy0501/PILoRA at 6d1c4ef has DINO's features, and answers with "
            "the adapters of the first and the recent task"
        ),
        model="tiny_vit",
    )
    small = {"rank": 2}
    Settings = PILoRASettings
    settings: PILoRASettings
    inputs = ("pixels",)
    buffers = ("means", "own.sums", "own.counts", "learns", "seen", "old", "task", PHASE)
    needs_each_update = True
    precomputes_for_evaluation = False
    no_class_embeddings = "its clients send prototypes and what they do to images, no prompt"

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    @cached_property
    def placement(self) -> Placement:
        blocks, width = self.settings.blocks, self.tower.width
        check_depth("method.blocks", blocks, self.tower.depth, "image")
        return Placement(LAYERS, 0, blocks, width, 4 * width)

    def why_not_per_image(self) -> str:
        return (
            "method=pilora: a client sends mean features of its images, which no clipped gradient "
            "protects"
        )

    def init_shared(self, rng: np.random.Generator) -> Params:
        s, classes, embed = self.settings, len(self.task.class_names), self.task.clip.embed
        tasks = [
            self.placement.start_A(s.rank, rng) | self.placement.start_B(s.rank)
            for _ in range(self.task.phases)
        ]
        return {
            **{name: torch.stack([task[name] for task in tasks]) for name in TENSORS},
            "c": 0.1 * embed**-0.5 * torch.from_numpy(rng.normal(size=(classes, embed))),
            "means": torch.zeros(classes, embed),
        }

    def init_personal(self, rng: np.random.Generator) -> Params:
        classes = len(self.task.class_names)
        flags = {"seen": torch.zeros(classes), "old": torch.zeros(classes)}
        return {**flags, "task": torch.full((1,), -1.0)}  # of the last round; none yet

    # Training. ------------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        task, phase, ids = params["task"], params[PHASE].unsqueeze(-1), list(classes.ids)
        begins = (task >= 0) & (task != phase)  # (K, 1)
        old, known = torch.where(begins, params["seen"], params["old"]), params["seen"].clone()
        known[:, ids] = 1
        learns = torch.zeros_like(known)
        present = load_batch(images=False).seen(len(ids)) > 0
        learns[:, ids] = ((old[:, ids] == 0) | present).to(learns)
        return {
            "old": old,
            "seen": known,
            "task": phase.to(task),
            "learns": learns.unsqueeze(-1),
            "own.sums": torch.zeros_like(params["c"]),
            "own.counts": torch.zeros_like(params["c"][..., :1]),
        }

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        s, phase = self.settings, params[PHASE]
        clients = torch.arange(len(phase), device=phase.device)
        own = {name: params[name][clients, phase] for name in TENSORS}
        x = self._features(batch.images, own)
        self._collect(params, x, batch, classes)
        d = distances(x, params["c"][:, list(classes.ids)])
        to_own = d.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
        total = cross_entropy(-d, batch.labels, batch.weights)
        total = total + s.pull * (to_own * batch.weights).sum(-1)
        earlier = torch.arange(self.task.phases, device=phase.device) < phase.unsqueeze(-1)
        for layer in LAYERS:
            A, others = own[f"{layer}.A"], params[f"{layer}.A"].detach()
            overlaps = (others @ A.mT.unsqueeze(1)).abs().sum((-3, -2, -1))  # (K, tasks)
            total = total + s.sparse * A.abs().sum((-3, -2, -1))
            total = total + s.orthogonal * (overlaps * earlier).sum(-1)
        return total

    def _collect(self, params: Params, x: Tensor, batch: Batch, classes: ClassSet) -> None:
        """Add the features of a step to those that the client's class means are made of."""
        with torch.no_grad():
            read = replace(batch, images=Images(features=x.detach()))
            sums, counts = class_sums(read, classes.ids, len(self.task.class_names))
            params["own.sums"].add_(sums)
            params["own.counts"].add_(counts)

    def rates(self, params: Params, step: StepContext) -> Params:
        """Only the client's own task learns, and the prototypes of its classes."""
        tasks = torch.arange(self.task.phases, device=params[PHASE].device)
        own = (tasks == params[PHASE].unsqueeze(-1)).to(params["c"])[..., None, None, None]
        return {
            **dict.fromkeys(TENSORS, own),
            "c": self.settings.prototype_rate * params["learns"],
        }

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, "means": params["own.sums"] / params["own.counts"].clamp(min=1)}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        before, sent = context.global_params, context.updates
        c, means = sent["c"].double(), sent["means"].double()  # (S, classes, e)
        present = means.ne(0).any(-1).double()  # (S, classes)
        apart = torch.cdist(c.transpose(0, 1), means.transpose(0, 1))  # (classes, S, S)
        far = (apart * present.T.unsqueeze(1)).sum(-1)
        near = far.clamp(min=1e-12).reciprocal()
        low, high = near.amin(-1, keepdim=True), near.amax(-1, keepdim=True)
        scaled = torch.where(high > low, (near - low) / (high - low), 0)
        weights = (scaled / self.settings.tau).softmax(-1).T.unsqueeze(-1)  # (S, classes, 1)
        count = present.sum(0).unsqueeze(-1)
        together = (means.sum(0) / count.clamp(min=1)).to(before["means"])
        return {
            **averaged,
            # Added as differences, so that a prototype that nobody moved stays to the last bit.
            "c": before["c"] + (weights * (c - before["c"])).sum(0).to(before["c"]),
            "means": torch.where(count > 0, together, before["means"]),
        }, {}

    # Features and answers. ------------------------------------------------------------------------

    def _features(self, images: Images, tensors: Params) -> Tensor:
        """Image features with adapters in the first blocks, unit norm, (K, B, e)."""
        return self.tower(images.pixels, adapters=Adapters(tensors, 0, self.tower.folds))

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        ids = list(classes.ids)
        learned = shared["means"][:, ids].ne(0).any(-1, keepdim=True)
        merged = {}
        for layer in LAYERS:
            A, B = shared[f"{layer}.A"], shared[f"{layer}.B"]
            begun = B.flatten(2).ne(0).any(-1)[..., None, None, None]  # B starts at zero
            merged |= {f"{layer}.A": (A * begun).sum(1), f"{layer}.B": B.sum(1)}
        return {**merged, "c": torch.where(learned, shared["c"][:, ids], classes.zero_shot)}

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        x = self._features(images, {name: classifier[name] for name in TENSORS})
        return -distances(x, classifier["c"])

    def step_work(self, size: StepSize) -> Work:
        s, tower, embed = self.settings, self.tower, self.task.clip.embed
        flop = tower_gflop(tower.width, tower.depth, tower.tokens, read=1) + tower.embedding_gflop
        flop += tower_gflop(tower.width, tower.depth, tower.tokens, read=1, constant=tower.tokens)
        rows = size.images * tower.tokens
        work = Work(size.images * flop, rows, tower.width)
        for _ in TENSORS:
            work += size.layer(s.blocks * rows, tower.width, s.rank)
        return work + size.layer(size.images, embed, len(size.classes.names))


def distances(x: Tensor, prototypes: Tensor) -> Tensor:
    """Return Euclidean distances, (K, B, e) and (K, C, e) -> (K, B, C)."""
    squares = x.square().sum(-1, keepdim=True) + prototypes.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * x @ prototypes.mT).clamp(min=1e-12).sqrt()
