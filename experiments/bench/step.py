"""One training step of FedPGP (batch 32, 16 context tokens, rank 8) on a text tower with random weights.

The reference is the textbook step: full 77-token sequences for every class through the model's own transformer; a
global and a personal pass with gradients, a guidance pass without; autograd.
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from experiments.bench.measure import gemm_gflops, in_turn, peak_memory, relative
from fedpgp.clip import load_clip, resolve_device
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods import METHODS, Batch, Images, Method, Params, Step
from fedpgp.seeding import generator
from fedpgp.task import Candidates, Task

MODEL, IMAGES, CONTEXT, RANK = "ViT-B-16", 32, 16, 8
STEP = Step(round=1, step=0, clients=(0,), received={}, lr=0.1, seed=0)  # FedPGP needs nothing of it
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


def setting(
    classes: int, clients: int, arguments: argparse.Namespace, *, n_ctx: int = CONTEXT, rank: int = RANK
) -> tuple[Method, Params, Batch, Candidates]:
    """FedPGP at its start with random images, for a number of clients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are the point here
        clip = load_clip(arguments.model or MODEL, "random", resolve_device(arguments.device))
    compute = torch.bfloat16 if arguments.dtype == "bfloat16" else None
    task = Task(clip, class_names(classes), n_ctx=n_ctx, compute=compute)
    method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=rank, personal_init="normal"), task)
    shared = method.init_shared(generator(0, "shared"))
    personal = [method.init_personal(generator(0, "personal", k)) for k in range(clients)]
    params = {name: tensor.expand(clients, *tensor.shape) for name, tensor in shared.items()}
    params |= {name: torch.stack([p[name] for p in personal]) for name in personal[0]}
    params = {name: tensor.to(task.device, task.dtype).contiguous() for name, tensor in params.items()}
    torch.manual_seed(0)
    batch = Batch(
        Images(
            F.normalize(torch.randn(clients, IMAGES, task.candidates([0]).photo.shape[-1], device=task.device), dim=-1)
        ),
        torch.randint(0, classes, (clients, IMAGES), device=task.device),
        torch.full((clients, IMAGES), 1 / IMAGES, device=task.device),
    )
    return method, params, batch, task.candidates(range(classes))


def textbook_loss(
    method: Method, leaves: Params, images: Images, labels: torch.Tensor, weights: torch.Tensor, classes: Candidates
) -> torch.Tensor:
    """FedPGP's loss of one client's batch (B,) as a textbook has it: three passes over full sequences."""
    model, tokenizer = classes.task.clip.text_model, classes.task.clip.tokenizer
    n_ctx = len(leaves["p_G"])
    tokens = tokenizer(["X " * n_ctx + name.replace("_", " ") + "." for name in classes.names]).to(labels.device)
    photo = tokenizer(classes.sentences).to(labels.device)

    def encode(tokens: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        x = model.token_embedding(tokens)
        if context is not None:
            x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + n_ctx :]], dim=1)
        x = model.ln_final(model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask))
        return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)

    z_G, z_i = encode(tokens, leaves["p_G"]), encode(tokens, leaves["p_G"] + leaves["U"] @ leaves["V"])
    with torch.no_grad():
        z_C = encode(photo, None)
    ce = cross_entropy(method.logits(z_i, images, classes), labels, weights)
    return ce + method.settings.mu * prompt_contrastive_loss(z_G, z_C, z_i, method.settings.tau)


def plain_step(method: Method, params: Params, batch: Batch, classes: Candidates) -> tuple[torch.Tensor, Params]:
    """The textbook step of every client in turn: loss (K,) and gradients by autograd."""
    losses, grads = [], {name: [] for name in params}
    for k in range(len(batch.labels)):
        leaves = {name: tensor[k].clone().requires_grad_() for name, tensor in params.items()}
        loss = textbook_loss(method, leaves, batch.images[k], batch.labels[k], batch.weights[k], classes)
        loss.backward()
        losses.append(loss.detach())
        for name, leaf in leaves.items():
            grads[name].append(leaf.grad)
    return torch.stack(losses), {name: torch.stack(parts) for name, parts in grads.items()}


def linear_gflop(classes: Candidates, clients: int) -> float:
    """GFLOP of the linear layers of one step that cannot be avoided, forward and (inputs only) backward, for all
    clients.

    Both passes; no query, key and value of the suffix in the first block; in the last one queries, output and MLP at
    EOT alone.
    """
    encoder = classes.encoder(classes.task.n_ctx)
    d, blocks, tokens, ends = encoder.tower.width, len(encoder.tower.blocks), encoder.tokens, len(classes.names)
    middle = 12 * d * d * tokens * (blocks - 1)
    last = 2 * d * d * tokens + 10 * d * d * ends
    saved = 3 * d * d * (tokens - 1 - encoder.n_ctx)
    return 2 * 2 * 2 * clients * (middle + last - saved) / 1e9


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


def speed(classes: Candidates, clients: int, seconds: float) -> dict:
    """Achieved GFLOP/s of a step, this machine's GEMM speed at its shapes, and the share."""
    encoder = classes.encoder(classes.task.n_ctx)
    achieved = linear_gflop(classes, clients) / seconds
    tower = encoder.tower
    peak = gemm_gflops(2 * encoder.tokens * clients, tower.width, tower.device, tower.compute)
    return {"gflops": achieved, "gemm_gflops": peak, "share_of_gemm": achieved / peak}
