"""Benchmarks: this project against a plain reference, in one process, in turn, so that a noisy machine slows both
alike.

    python -m experiments.bench step [--classes 50 100] [--json FILE]
    python -m experiments.bench cohort [--clients 10]

``step``: one training step of FedPGP (batch 32, 16 context tokens, rank 8) on the text tower of ViT-B/16 with random
weights. The reference
is the textbook step: full 77-token sequences for every class through the model's own transformer; a global and a
personal pass with gradients, a guidance pass without; autograd.

``cohort``: one step of K clients in one tensor program against K steps of one client.

Each prints the ratio of medians, the achieved GFLOP/s of the linear layers that remain, its share of this machine's
measured GEMM speed at the same shapes, and the peak memory a step adds.
"""

import argparse
import json
import platform
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from fedpgp.clip import load_clip, resolve_device
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods import METHODS, Batch, Images, Method, Params, Step
from fedpgp.seeding import generator
from fedpgp.task import Candidates, Task

IMAGES, CONTEXT, RANK = 32, 16, 8
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


def setting(classes: int, clients: int, model: str, device: str) -> tuple[Method, Params, Batch, Candidates]:
    """FedPGP at its start with random images, for a number of clients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are the point here
        clip = load_clip(model, "random", resolve_device(device))
    task = Task(clip, class_names(classes), n_ctx=CONTEXT)
    method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=RANK, personal_init="normal"), task)
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


def plain_step(method: Method, params: Params, batch: Batch, classes: Candidates) -> tuple[torch.Tensor, Params]:
    """The textbook step of every client in turn: three passes over full sequences, autograd."""
    model, tokenizer = classes.task.clip.text_model, classes.task.clip.tokenizer
    tokens = tokenizer(["X " * CONTEXT + name + "." for name in classes.names]).to(batch.labels.device)
    photo = tokenizer(classes.sentences).to(batch.labels.device)

    def encode(tokens: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        x = model.token_embedding(tokens)
        if context is not None:
            x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + CONTEXT :]], dim=1)
        x = model.ln_final(model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask))
        return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)

    losses, grads = [], {name: [] for name in params}
    for k in range(len(batch.labels)):
        leaves = {name: tensor[k].clone().requires_grad_() for name, tensor in params.items()}
        z_G = encode(tokens, leaves["p_G"])
        z_i = encode(tokens, leaves["p_G"] + leaves["U"] @ leaves["V"])
        with torch.no_grad():
            z_C = encode(photo, None)
        ce = cross_entropy(method.logits(z_i, batch.images[k], classes), batch.labels[k], batch.weights[k])
        loss = ce + method.settings.mu * prompt_contrastive_loss(z_G, z_C, z_i, method.settings.tau)
        loss.backward()
        losses.append(loss.detach())
        for name, leaf in leaves.items():
            grads[name].append(leaf.grad)
    return torch.stack(losses), {name: torch.stack(parts) for name, parts in grads.items()}


def in_turn(first: Callable, second: Callable, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of two functions, called in turn, after one call of each that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds.append(time.perf_counter() - start)
    return times


def peak_memory(function: Callable) -> float:
    """MiB that a call adds at its highest: allocated GPU memory, or this process's resident set, sampled every
    millisecond."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    process, peak, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0, peak - before) / 2**20


def linear_gflop(classes: Candidates, clients: int) -> float:
    """GFLOP of the linear layers of one step that cannot be avoided, forward and (inputs only) backward, for all
    clients.

    Both passes; no query, key and value of the suffix in the first block; in the last one queries, output and MLP at
    EOT alone.
    """
    encoder = classes.encoder(CONTEXT)
    d, blocks, tokens, ends = encoder.tower.width, len(encoder.tower.blocks), encoder.tokens, len(classes.names)
    middle = 12 * d * d * tokens * (blocks - 1)
    last = 2 * d * d * tokens + 10 * d * d * ends
    saved = 3 * d * d * (tokens - 1 - CONTEXT)
    return 2 * 2 * 2 * clients * (middle + last - saved) / 1e9


def gemm_gflops(rows: int, width: int, device: torch.device) -> float:
    """This machine's float32 GEMM speed at the shapes of a block's linear layers."""
    x, shapes = (
        torch.randn(rows, 4 * width, device=device),
        [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)],
    )
    weights = [torch.randn(o, i, device=device) for i, o in shapes]

    def products() -> None:
        for (i, _), weight in zip(shapes, weights, strict=True):
            x[:, :i].contiguous() @ weight.T

    seconds, _ = in_turn(products, lambda: None, 10)
    return sum(2 * rows * i * o for i, o in shapes) / 1e9 / statistics.median(seconds)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def bench_step(arguments: argparse.Namespace) -> list[dict]:
    """One client's step against the textbook step."""
    rows = []
    for count in arguments.classes:
        method, params, batch, classes = setting(count, 1, arguments.model, arguments.device)

        def ours(method=method, params=params, batch=batch, classes=classes):
            return method.gradients(params, batch, classes, STEP)

        def plain(method=method, params=params, batch=batch, classes=classes):
            return plain_step(method, params, batch, classes)

        (loss, grads), (plain_loss, plain_grads) = ours(), plain()
        fast, slow = in_turn(ours, plain, arguments.repeats)
        gflops = linear_gflop(classes, 1) / statistics.median(fast)
        encoder = classes.encoder(CONTEXT)
        peak = gemm_gflops(2 * encoder.tokens, encoder.tower.width, batch.labels.device)
        rows.append(
            {
                "bench": "step",
                "classes": count,
                "ms": 1e3 * statistics.median(fast),
                "reference_ms": 1e3 * statistics.median(slow),
                "ratio": statistics.median(slow) / statistics.median(fast),
                "gflops": gflops,
                "gemm_gflops": peak,
                "share_of_gemm": gflops / peak,
                "peak_mb": peak_memory(ours),
                "loss_difference": relative(loss, plain_loss),
                "gradient_difference": max(relative(grads[name], plain_grads[name]) for name in grads),
            }
        )
    return rows


def bench_cohort(arguments: argparse.Namespace) -> list[dict]:
    """K clients in one program against one client alone, per client."""
    rows = []
    for count in arguments.classes:
        method, params, batch, classes = setting(count, arguments.clients, arguments.model, arguments.device)
        one = {name: tensor[:1] for name, tensor in params.items()}
        one_batch = Batch(batch.images[:1], batch.labels[:1], batch.weights[:1])

        def together(method=method, params=params, batch=batch, classes=classes):
            return method.gradients(params, batch, classes, STEP)

        def alone(method=method, one=one, one_batch=one_batch, classes=classes):
            return method.gradients(one, one_batch, classes, STEP)

        many, single = in_turn(together, alone, arguments.repeats)
        each = statistics.median(many) / arguments.clients
        gflops = linear_gflop(classes, arguments.clients) / statistics.median(many)
        encoder = classes.encoder(CONTEXT)
        peak = gemm_gflops(2 * encoder.tokens * arguments.clients, encoder.tower.width, batch.labels.device)
        rows.append(
            {
                "bench": "cohort",
                "classes": count,
                "clients": arguments.clients,
                "ms_per_client": 1e3 * each,
                "alone_ms": 1e3 * statistics.median(single),
                "share_of_alone": each / statistics.median(single),
                "gflops": gflops,
                "gemm_gflops": peak,
                "share_of_gemm": gflops / peak,
                "peak_mb": peak_memory(together),
            }
        )
    return rows


BENCHES = {"step": bench_step, "cohort": bench_cohort}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=BENCHES, help="what to measure")
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 100], help="numbers of classes (default 50 100)")
    parser.add_argument("--clients", type=int, default=10, help="clients of a cohort (default 10)")
    parser.add_argument("--model", default="ViT-B-16", help="open_clip architecture, random weights (default ViT-B-16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--repeats", type=int, default=5, help="counted calls of each, in turn (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine to FILE")
    arguments = parser.parse_args()
    rows = BENCHES[arguments.what](arguments)
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        machine |= {"torch": torch.__version__, "numpy": np.__version__}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
        print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
