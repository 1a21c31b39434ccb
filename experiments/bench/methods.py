"""One training step (loss and gradients) of every method that learns, against what its own FLOPs
say.

A method's own FLOPs are those of the linear layers that its equations cannot do without. They are
computed here from the method's definition, not counted in what its code executes: so many
contexts through the text tower, images through the image tower, forward, and backward as far as
something is learned; what is frozen costs nothing after the first step. So whatever a step
computes too often shows, and so does all that is no such product: attention, norms, activations,
transport, small operations.

``ratio`` is the time of a step divided by the time that these FLOPs take at this machine's GEMM
speed at their shapes: the median over pairs of a step and such products, in turn. It is 1 /
``share_of_gemm`` of ``bench step``.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from experiments.bench.measure import block_products, in_turn, peak_memory
from experiments.bench.step import IMAGES, random_batch, start, task_of, tower_gflop
from fedpgp.frozen import FrozenCLIP
from fedpgp.methods import METHODS, Batch, Method, Params, StepContext
from fedpgp.methods.fedmvp import POOLED
from fedpgp.seeding import generator
from fedpgp.task import ClassSet, Task
from fedpgp.templates import SEVEN

CLIENTS = 10
"""In the federation of a method whose server keeps a state for each of them; one is trained."""
IN_TOWER = 4
"""Images in a step of a method that works inside the image tower: what it costs is
proportional to them."""


@dataclass(frozen=True)
class Work:
    """Matrix products: GFLOP of all; rows and width of the tower, or layer, that has most."""

    gflop: float
    rows: int
    width: int

    def __add__(self, other: "Work") -> "Work":
        larger = max(self, other, key=lambda work: work.gflop)
        return Work(self.gflop + other.gflop, larger.rows, larger.width)


@dataclass(frozen=True)
class Case:
    """A method's step of one client (``run``), and what the parts of such a step need."""

    method: Method
    params: Params
    batch: Batch
    classes: ClassSet
    step: StepContext

    @classmethod
    def of(cls, method: Method) -> "Case":
        """A client in its second round, with what the server sends it and the method
        precomputes."""
        task, shared = method.task, method.init_shared(generator(0, "shared"))
        batch = random_batch(method, 1, IN_TOWER if "pixels" in method.inputs else IMAGES)
        classes = task.class_set(range(len(task.class_names)))
        server_state = {
            name: torch.ones_like(tensor) if name == "known" else torch.randn_like(tensor)
            for name, tensor in method.init_server_state(CLIENTS).items()
        }
        params = start(method, 1)
        for name, tensor in method.download_for(0, server_state).items():
            params[name] = tensor.to(task.device, task.dtype).unsqueeze(0)
        with torch.no_grad():
            params |= method.precompute(params, lambda images=True: batch, classes)
        global_params = {name: params[name] for name in shared}
        return cls(method, params, batch, classes, StepContext(2, 1, (0,), global_params, 0.1, 0))

    def run(self) -> tuple[torch.Tensor, Params]:
        return self.method.gradients(self.params, self.batch, self.classes, self.step)

    @property
    def images(self) -> int:
        return self.batch.labels.shape[1]

    def texts(
        self, contexts: int = 1, *, names: int | None = None, backward: int = 1, depth: int = 1
    ) -> Work:
        """Contexts, learned in ``depth`` blocks, through the text tower; so many times backward to
        them.

        Args:
            names: how many classes they stand before; None: all, 0: a bare full stop.
        """
        encoder, count = self.classes.encoder(self.method.task.n_ctx), len(self.classes.names)
        tower, suffix = encoder.tower, encoder.tokens - 1 - encoder.n_ctx
        if names == 0:
            count, suffix = 1, 2
        tokens = 1 + encoder.n_ctx + suffix
        blocks, unread = len(tower.blocks), (depth - 1) * encoder.n_ctx
        one = tower_gflop(tower.width, blocks, tokens, read=count, constant=suffix, unread=unread)
        return Work(contexts * (1 + backward) * one, contexts * tokens, tower.width)

    def through_image_tower(self, prompts: int, *, groups: int = 1, depth: int = 1) -> Work:
        """Every image through the image tower, once with each group of prompts, learned
        in ``depth`` blocks, and backward to these. The images' own tokens are known
        until the first attention."""
        tower, tokens = self.method.tower, self.method.tower.tokens

        def once(constant: int) -> float:
            return tower_gflop(
                tower.width,
                tower.depth,
                tokens + prompts,
                read=1,
                constant=constant,
                unread=(depth - 1) * prompts,
            )

        flop = once(0) + (groups - 1) * once(tokens) + groups * once(tokens)
        return Work(
            self.images * (flop + self.patches()), self.images * (tokens + prompts), tower.width
        )

    def patches(self) -> float:
        """GFLOP that make one image's tokens of its pixels."""
        tower = self.method.tower
        return 2 * (tower.tokens - 1) * tower.weights["conv1.weight"].numel() / 1e9

    def layer(self, rows: int, inputs: int, outputs: int, times: int = 3) -> Work:
        """A linear layer: forward, backward to its inputs and to its weights; ``times`` is 2
        where either is frozen."""
        return Work(2 * times * rows * inputs * outputs / 1e9, rows, inputs)


# What each method's equations need. ---------------------------------------------------------------


def patch_similarities(case: Case, prompts: int) -> Work:
    """FedOTP, PLOT: cosines of every patch and every class under each prompt."""
    _, images, patches, embed = case.batch.images.patches.shape
    return case.layer(images * patches, embed, prompts * len(case.classes.names), 2)


def fedtpg(case: Case) -> Work:
    m, d, e = case.method.task.n_ctx, case.method.task.clip.width, case.method.task.clip.embed
    queries, names = case.layer(m, d, 14 * d), case.layer(len(case.classes.names), e, 2 * d)
    return case.texts() + queries + names


def pfedmoap(case: Case) -> Work:
    settings, pairs = case.method.settings, case.images * len(case.classes.names)
    width, experts = settings.width, settings.experts
    tokens = case.layer(experts * len(case.classes.names), width, 2 * width)
    gate = case.layer(case.images, width, 2 * width) + case.layer(pairs, width, 2 * experts)
    return case.texts() + tokens + gate


def cocoop(case: Case) -> Work:
    d, (hidden, embed) = case.method.task.clip.width, case.params["1.weight"].shape[1:]
    return (
        case.texts(case.images)
        + case.layer(case.images, embed, hidden, 2)
        + case.layer(case.images, hidden, d)
    )


def fedclip(case: Case) -> Work:
    embed = case.method.task.clip.embed
    return case.layer(case.images, embed, embed, 2) + case.layer(case.images, embed, embed)


def pfedmma(case: Case) -> Work:
    """Forward through both towers, of the text without the blocks before the first adapter, which
    have nothing to do with an image or a client; backward through the blocks behind it."""
    settings, tower = case.method.settings, case.method.tower
    encoder, count, size = (
        case.classes.encoder(4),
        len(case.classes.names),
        case.method.settings.size,
    )
    adapters, behind = settings.last - settings.first, tower.depth - settings.first
    work = Work(case.images * case.patches(), case.images * tower.tokens, tower.width)
    for copies, width, tokens, read, blocks in (
        (case.images, tower.width, tower.tokens, 1, tower.depth),
        (
            1,
            case.method.task.clip.width,
            encoder.tokens,
            count,
            len(encoder.tower.blocks) - settings.first + 1,
        ),
    ):
        forward = tower_gflop(width, blocks, tokens, read=read)
        backward = tower_gflop(width, behind, tokens, read=read) if behind else 0.0
        work += Work(copies * (forward + backward), copies * tokens, width)
        work += case.layer(copies * (adapters * tokens + read), size, 2 * width + size)
    return work


def fedmvp(case: Case) -> Work:
    tower = case.method.tower
    width, patches = tower.width, case.images * (tower.tokens - 1)
    described = len(SEVEN) * len(case.classes.names)
    keys = case.layer(described, case.method.task.clip.embed, width, 2) + case.layer(
        described, width, 2 * width
    )
    return (
        case.through_image_tower(POOLED)
        + keys
        + case.layer(patches, width, 14 * width + 2 * described)
    )


WORK: dict[str, Callable[[Case], Work]] = {
    **dict.fromkeys(
        (
            "coop",
            "promptfl",
            "promptfl_ft",
            "fedprox",
            "fedper",
            "scaffold",
            "fedamp",
            "dp_fpl",
            "kgcoop",
        ),
        Case.texts,
    ),
    "pfedprompt": Case.texts,
    "prograd": lambda case: case.texts(backward=2),
    **dict.fromkeys(("fedpgp", "ditto", "promptfolio"), lambda case: case.texts(2)),
    "fedotp": lambda case: case.texts(2) + patch_similarities(case, 2),
    "plot": lambda case: case.texts(4) + patch_similarities(case, 4),
    "fedpha": lambda case: case.texts(3),
    "proda": lambda case: case.texts(4) + case.texts(4, names=0),
    "fedtpg": fedtpg,
    "pfedmoap": pfedmoap,
    "cocoop": cocoop,
    "fedclip": fedclip,
    "vpt": lambda case: case.through_image_tower(
        case.method.settings.tokens, depth=case.method.settings.depth
    ),
    **dict.fromkeys(
        ("maple", "promptsrc"),
        lambda case: (
            case.texts(depth=case.method.settings.depth)
            + case.through_image_tower(case.method.task.n_ctx, depth=case.method.settings.depth)
        ),
    ),
    "pfedmma": pfedmma,
    "fedmgp": lambda case: (
        case.texts(5) + case.through_image_tower(case.method.settings.tokens, groups=5)
    ),
    "fedmvp": fedmvp,
}
"""Method -> its own work in a step."""


def settings(name: str, clip: FrozenCLIP) -> dict:
    """Settings that are not the defaults: no more blocks with prompts or adapters than the model
    has."""
    blocks = clip.text_blocks
    if name == "pfedmma":
        return {"first": min(5, blocks), "last": min(12, blocks)}
    return {"depth": min(9, blocks)} if name in ("vpt", "maple", "promptsrc") else {}


def method_of(name: str, task: Task) -> Method:
    return METHODS[name](METHODS[name].Settings(**settings(name, task.clip)), task)


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each method and number of classes."""
    for count in arguments.classes:
        task = task_of(count, arguments)
        for name in arguments.methods or WORK:
            case = Case.of(method_of(name, task))
            work = WORK[name](case)
            products, gflop = block_products(
                work.rows, work.width, task.device, task.compute or task.dtype
            )
            repeats = max(1, round(work.gflop / 2 / gflop))  # so long that a busy moment hits both

            def reference(products=products, repeats=repeats):
                for _ in range(repeats):
                    products()

            ours, theirs = in_turn(case.run, reference, arguments.repeats)
            speeds = [repeats * gflop / seconds for seconds in theirs]
            yield {
                "bench": "methods",
                "method": name,
                "classes": count,
                "images": case.images,
                "ms": 1e3 * statistics.median(ours),
                "own_gflop": work.gflop,
                "gflops": work.gflop / statistics.median(ours),
                "gemm_gflops": statistics.median(speeds),
                "ratio": statistics.median(
                    t * s / work.gflop for t, s in zip(ours, speeds, strict=True)
                ),
                "peak_mb": peak_memory(case.run),
            }
