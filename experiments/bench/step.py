"""One training step of FedPGP (batch 32, 16 context tokens, rank 8) on a text tower with random
weights.

The reference is the textbook step: full 77-token sequences for every class through the model's own
transformer; a global and a personal pass with gradients, a guidance pass without; autograd.
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from experiments.bench.measure import gemm_gflops, in_turn, peak_memory, relative
from experiments.bench.textbook import encode_text, placeholder_texts
from fedpgp.clip import load_clip, resolve_device
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods import METHODS, Batch, Images, Method, Params, StepContext
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize
from fedpgp.task import ClassSet, Task

MODEL, IMAGES, CONTEXT, RANK, PATCHES = "ViT-B-16", 32, 16, 8, 196
STEP = StepContext(
    server_round=1, step=0, clients=(0,), global_params={}, lr=0.1, seed=0
)  # FedPGP needs nothing of it
WORDS = (
    "cat",
    "dog",
    "tree",
    "house",
    "river",
    "mountain",
    "red",
    "small",
    "wooden",
    "old",
    "kettle",
    "falcon",
    "harbour",
)


def class_names(count: int) -> list[str]:
    """Made-up class names of one to three words, as many as asked, always the same."""
    rng = generator(0, "names")
    return [" ".join(rng.choice(WORDS, size=1 + i % 3)) for i in range(count)]


def task_of(classes: int, arguments: argparse.Namespace, n_ctx: int = CONTEXT) -> Task:
    """Return a model with random weights, and that many made-up classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are the point here
        clip = load_clip(arguments.model or MODEL, "random", resolve_device(arguments.device))
    compute = torch.bfloat16 if arguments.dtype == "bfloat16" else None
    return Task(clip, class_names(classes), n_ctx=n_ctx, compute=compute)


def start(method: Method, clients: int) -> Params:
    """Every tensor of a method at its start, for a number of clients."""
    task, shared = method.task, method.init_shared(generator(0, "shared"))
    personal = [method.init_personal(generator(0, "personal", k)) for k in range(clients)]
    params = {name: tensor.expand(clients, *tensor.shape) for name, tensor in shared.items()}
    params |= {name: torch.stack([p[name] for p in personal]) for name in personal[0]}
    return {
        name: tensor.to(task.device, task.dtype).contiguous() for name, tensor in params.items()
    }


def random_batch(method: Method, clients: int, images: int = IMAGES) -> Batch:
    """Random images in all inputs of the method, with random labels."""
    task = method.task
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(clients, images, *shape, device=task.device)

    read: dict[str, torch.Tensor] = {}
    inputs = method.inputs + method.training_inputs
    for what in ("features", "mirrored"):
        if what in inputs:
            read[what] = F.normalize(draw(task.clip.embed), dim=-1)
    if "features_raw" in inputs:
        read["features_raw"] = draw(task.clip.embed)
    if "patches" in inputs:  # with cosines as real ones have them, or transport would end at once
        noise, near = (
            F.normalize(draw(PATCHES, task.clip.embed), dim=-1),
            task.class_set([0]).template_features,
        )
        read["patches"] = F.normalize(noise + 0.3 * draw(PATCHES, 1) * near, dim=-1)
    if "pixels" in inputs:
        read["pixels"] = draw(3, task.clip.image_size, task.clip.image_size)
    labels = torch.randint(0, len(task.class_names), (clients, images), device=task.device)
    return Batch(
        Images(**read), labels, torch.full((clients, images), 1 / images, device=task.device)
    )


def setting(
    classes: int,
    clients: int,
    arguments: argparse.Namespace,
    *,
    n_ctx: int = CONTEXT,
    rank: int = RANK,
) -> tuple[Method, Params, Batch, ClassSet]:
    """FedPGP at its start with random images, for a number of clients."""
    return setting_of(task_of(classes, arguments, n_ctx), clients, rank=rank)


def setting_of(
    task: Task, clients: int, *, rank: int = RANK
) -> tuple[Method, Params, Batch, ClassSet]:
    """FedPGP at its start with random images and all classes of a task, for a number of clients."""
    method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=rank, personal_init="normal"), task)
    return (
        method,
        start(method, clients),
        random_batch(method, clients),
        task.class_set(range(len(task.class_names))),
    )


def textbook_loss(
    method: Method,
    leaves: Params,
    images: Images,
    labels: torch.Tensor,
    weights: torch.Tensor,
    classes: ClassSet,
) -> torch.Tensor:
    """FedPGP's loss of one client's batch (B,) as a textbook has it: three passes over full
    sequences."""
    encode = partial(encode_text, classes.task.clip.text_model)
    tokenizer, p_G = classes.task.clip.tokenizer, leaves["p_G"]
    tokens = tokenizer(placeholder_texts(classes.names, len(p_G))).to(labels.device)
    z_G, z_i = encode(tokens, p_G), encode(tokens, p_G + leaves["U"] @ leaves["V"])
    with torch.no_grad():
        z_C = encode(tokenizer(classes.sentences).to(labels.device))
    ce = cross_entropy(method.logits(z_i, images, classes), labels, weights)
    return ce + method.settings.mu * prompt_contrastive_loss(z_G, z_C, z_i, method.settings.tau)


def plain_step(
    method: Method, params: Params, batch: Batch, classes: ClassSet
) -> tuple[torch.Tensor, Params]:
    """Return the textbook step of every client in turn: loss (K,) and gradients by autograd."""
    losses, grads = [], {name: [] for name in params}
    for k in range(len(batch.labels)):
        leaves = {name: tensor[k].clone().requires_grad_() for name, tensor in params.items()}
        loss = textbook_loss(
            method, leaves, batch.images[k], batch.labels[k], batch.weights[k], classes
        )
        loss.backward()
        losses.append(loss.detach())
        for name, leaf in leaves.items():
            grads[name].append(leaf.grad)
    return torch.stack(losses), {name: torch.stack(parts) for name, parts in grads.items()}


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One client's step against the textbook step, for each number of classes."""
    for count in arguments.classes:
        method, params, batch, classes = setting(count, 1, arguments)

        def ours(method=method, params=params, batch=batch, classes=classes):
            return method.gradients(params, batch, classes, STEP)

        def plain(method=method, params=params, batch=batch, classes=classes):
            return plain_step(method, params, batch, classes)

        (loss, grads), (plain_loss, plain_grads) = ours(), plain()
        fast, slow = in_turn(ours, plain, arguments.repeats)
        yield {
            "bench": "step",
            "classes": count,
            "ms": 1e3 * statistics.median(fast),
            "reference_ms": 1e3 * statistics.median(slow),
            "ratio": statistics.median(slow) / statistics.median(fast),
            **speed(classes, 1, statistics.median(fast)),
            "peak_mb": peak_memory(ours),
            "loss_difference": relative(loss, plain_loss),
            "gradient_difference": max(relative(grads[name], plain_grads[name]) for name in grads),
        }


def speed(classes: ClassSet, clients: int, seconds: float) -> dict:
    """Achieved GFLOP/s of a step, this machine's GEMM speed at its shapes, and the fraction."""
    encoder = classes.encoder(classes.task.n_ctx)
    achieved = clients * StepSize(IMAGES, classes).texts(2).gflop / seconds
    tower = encoder.tower
    peak = gemm_gflops(2 * encoder.tokens * clients, tower.width, tower.device, tower.compute)
    return {"gflops": achieved, "gemm_gflops": peak, "share_of_gemm": achieved / peak}
