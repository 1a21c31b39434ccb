"""Fed-CPrompt: prompts of each task that an image puts together, and a contrastive continual loss
(Bagwe et al., 2023, arXiv 2307.04869; after CODA-Prompt).

    q   = CLIP's feature of the image, frozen
    P_l = sum_k cos(q * softmax(A_lk), K_lk) p_lk      the prompts of block l < depth: of a pool
                                                       that has ``pool`` entries for each task
    z   = f(patches, P)                                the image's feature with them
    L   = CE(s z.T) + C2L                              T: CLIP's text; classes of earlier tasks that
                                                       the client has no image of do not count
    C2L = relu(sum_b (pull |z - z_G|^2 - push |z - z_prev|^2) + margin);  in the first task
          sum_b pull |z - z_G|^2

z_G is with the prompts as the server sent them, z_prev with those at the end of the client's last
task. In task t the entries of tasks 0 to t are used and those of t learn; the others stand still,
so that clients may be in different tasks (asynchronous prompt learning).

Declared differences: the public code puts prompts before the keys and values of a block, not among
its tokens; has a linear classifier in the place of CLIP's text; and takes z before it is of unit
norm.
"""

from dataclasses import dataclass
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
    cosine_logits,
    mask_other_classes,
    register,
)
from fedpgp.step_work import StepSize, Work, tower_gflop
from fedpgp.task import ClassSet
from fedpgp.towers.image import ImageTower, check_depth

POOL = ("p", "K", "A")
"""The pool's tensors."""


@dataclass(frozen=True)
class FedCPromptSettings:
    """Settings of Fed-CPrompt.

    Attributes:
        pool: entries of a task.
        tokens: n, prompts of an entry in a block.
        depth: blocks with prompts.
        pull: weight of the distance from the global model's feature.
        push: of that from the last task's.
        margin: of the contrastive loss.
    """

    pool: int = 10
    tokens: int = 8
    depth: int = 5
    pull: float = 1e3
    push: float = 10.0
    margin: float = 1.0

    def __post_init__(self):
        check_number("method.pool", self.pool, least=1, whole=True)
        check_number("method.tokens", self.tokens, least=1, whole=True)
        check_number("method.depth", self.depth, least=1, whole=True)
        for name in ("pull", "push", "margin"):
            check_number(f"method.{name}", getattr(self, name), least=0)


@register("fed_cprompt")
class FedCPrompt(Method):
    """Shared: p (depth, entries, n, W), K and A (depth, entries, e), ``tasks`` (1) that have begun.
    Personal: the pool at the end of the last task, classes that it has seen."""

    about = About(
        title="Fed-CPrompt",
        paper="Bagwe et al., 2023",
        family="lifelong",
        learns=("image prompts",),
        shared="pool of image prompts, some for each task",
        personal="nothing private",
        sent="T*depth*pool*(tokens*W + 2*e) + 1",
        passes="none",
        official=(
            "declared difference: grbagwe/Fed-CPrompt at a19c98b has prefixes of keys and values "
            "in the place of tokens, and a linear classifier"
        ),
        model="tiny_vit",
        order=32,
    )
    small = {"depth": 2, "pool": 2, "tokens": 2}
    Settings = FedCPromptSettings
    settings: FedCPromptSettings
    inputs = ("pixels", "features")
    buffers = ("tasks", "prev.p", "prev.K", "prev.A", "seen", "old", "task", "counts", PHASE)
    sent_copies = ("prev.p", "prev.K", "prev.A")
    precomputes_for_evaluation = False
    no_class_embeddings = "its class embeddings are frozen; clients send what they do to images"

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    @classmethod
    def settings_of(cls, blocks: int) -> FedCPromptSettings:
        return cls.Settings(depth=min(5, blocks))

    def why_not_per_image(self) -> str:
        return "method=fed_cprompt: its contrastive loss is of a whole batch, not of single images"

    @property
    def entries(self) -> int:
        return self.task.phases * self.settings.pool

    def init_shared(self, rng: np.random.Generator) -> Params:
        s, embed = self.settings, self.task.clip.embed
        check_depth("method.depth", s.depth, self.tower.depth, "image")
        shapes = {"p": (s.tokens, self.tower.width), "K": (embed,), "A": (embed,)}
        pool = {
            name: torch.stack([_orthogonal(self.entries, shape, rng) for _ in range(s.depth)])
            for name, shape in shapes.items()
        }
        return {**pool, "tasks": torch.ones(1)}

    def init_personal(self, rng: np.random.Generator) -> Params:
        s, embed, classes = self.settings, self.task.clip.embed, len(self.task.class_names)
        shapes = {"p": (s.tokens, self.tower.width), "K": (embed,), "A": (embed,)}
        prev = {f"prev.{n}": torch.zeros(s.depth, self.entries, *shapes[n]) for n in POOL}
        flags = {"seen": torch.zeros(classes), "old": torch.zeros(classes)}
        return {**prev, **flags, "task": torch.full((1,), -1.0)}  # of the last round; none yet

    # Training. ------------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        task, phase = params["task"], params[PHASE].unsqueeze(-1)
        begins = (task >= 0) & (task != phase)  # (K, 1)
        known = torch.zeros_like(params["seen"])
        known[:, list(classes.ids)] = 1
        prev = {}
        for name in POOL:
            where = begins.view(-1, *[1] * (params[name].dim() - 1))
            prev[f"prev.{name}"] = torch.where(where, params[name], params[f"prev.{name}"])
        return {
            **prev,
            "old": torch.where(begins, params["seen"], params["old"]),
            "seen": known,
            "task": phase.to(task),
            "counts": load_batch(images=False).seen(len(classes.ids)),
        }

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        s, phase, images = self.settings, params[PHASE], batch.images
        embedded = self.tower.embed(images.pixels)
        z = self._prompted(images, embedded, params, phase)
        logits = cosine_logits(classes.zero_shot, z, self.task.logit_scale)
        counted = (params["old"][:, list(classes.ids)] == 0) | (params["counts"] > 0)
        ce = cross_entropy(mask_other_classes(logits, counted), batch.labels, batch.weights)
        real, first = batch.weights.sign(), phase == 0
        with torch.no_grad():
            z_G = self._prompted(images, embedded, step.global_params, phase)
        near = s.pull * ((z - z_G).square().sum(-1) * real).sum(-1)
        if first.all():
            return ce + near
        with torch.no_grad():
            prev = {name: params[f"prev.{name}"] for name in POOL}
            z_prev = self._prompted(images, embedded, prev, phase - 1)
        far = s.push * ((z - z_prev).square().sum(-1) * real).sum(-1)
        return ce + torch.where(first, near, (near - far + s.margin).relu())

    def rates(self, params: Params, step: StepContext) -> Params:
        """Only the entries of the client's own task learn."""
        own = (self._tasks(params["p"]) == params[PHASE].unsqueeze(-1)).to(params["p"])
        return {name: own.view(len(own), 1, -1, *[1] * (params[name].dim() - 3)) for name in POOL}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        return {**params, "tasks": params["task"] + 1}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        begun = (averaged["tasks"] - 1e-5).ceil()  # clients of one round may be in different tasks
        tasks = torch.maximum(context.global_params["tasks"], begun)
        return {**averaged, "tasks": tasks}, {}

    # Features and answers. ------------------------------------------------------------------------

    def _tasks(self, like: Tensor) -> Tensor:
        """Return the task of each entry of the pool, (entries,)."""
        return torch.arange(self.entries, device=like.device) // self.settings.pool

    def _prompted(self, images: Images, embedded: Tensor, pool: Params, last: Tensor) -> Tensor:
        """Return z with the entries of tasks up to ``last`` (K,), unit norm, (K, B, e)."""
        q, tilt, keys = images.features, pool["A"].softmax(-1), pool["K"]
        products = q.unsqueeze(1) @ (tilt * keys).mT  # (K, depth, B, entries)
        lengths = (q.square().unsqueeze(1) @ tilt.square().mT).clamp(min=1e-24).sqrt()
        shares = products / lengths / keys.norm(dim=-1).unsqueeze(-2)
        used = (self._tasks(q) <= last.unsqueeze(-1)).to(q)
        prompts = (shares * used[:, None, None]) @ pool["p"].flatten(-2)
        prompts = prompts.transpose(1, 2).unflatten(-1, pool["p"].shape[-2:])
        # Each image has prompts of its own: to the tower it is a client.
        z = self.tower.encode(embedded.flatten(0, 1).unsqueeze(1), prompts.flatten(0, 1))
        return z.view(*q.shape[:2], -1)

    def contexts(self, training: bool) -> int:
        return 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        texts = classes.zero_shot.expand(len(shared["p"]), -1, -1)
        return {**{name: shared[name] for name in (*POOL, "tasks")}, "texts": texts}

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        last = classifier["tasks"].squeeze(-1) - 1
        z = self._prompted(images, self.tower.embed(images.pixels), classifier, last)
        return cosine_logits(classifier["texts"], z, self.task.logit_scale)

    def step_work(self, size: StepSize) -> Work:
        s, embed, tower = self.settings, self.task.clip.embed, self.tower
        tokens, more = tower.tokens + s.tokens, (s.depth - 1) * s.tokens
        again = size.images * tower_gflop(tower.width, tower.depth, tokens, read=1, unread=more)
        pool = size.layer(s.depth * size.images, embed, self.entries, times=3)
        pool += size.layer(s.depth * size.images, embed, self.entries, times=3)
        pool += size.layer(s.depth * size.images, self.entries, s.tokens * tower.width, times=4)
        trained = size.through_image_tower(s.tokens, depth=s.depth)
        return trained + Work(again, size.images * tokens, tower.width) + pool


def _orthogonal(entries: int, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Return an (entries, ...) tensor of orthonormal rows, or columns where these are fewer, as
    ``torch.nn.init.orthogonal_`` draws it."""
    columns = int(np.prod(shape))
    sizes = sorted((entries, columns), reverse=True)
    q, r = torch.linalg.qr(torch.from_numpy(rng.normal(size=sizes)))
    q = q * r.diagonal().sign()
    return (q.mT if entries < columns else q).reshape(entries, *shape)
