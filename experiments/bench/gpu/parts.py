"""What is measured on a GPU, part by part: each yields its cases, and for each of them the function
that measures it."""

import argparse
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from experiments.bench import methods
from experiments.bench.measure import in_turn, peak_memory, relative
from experiments.bench.step import CONTEXT, STEP, class_names, plain_step, setting_of, speed
from fedpgp.clip import FrozenCLIP, load_clip
from fedpgp.task import Task
from fedpgp.towers.attention import attention_of
from fedpgp.towers.cuda_graphs import Graphs, eager
from fedpgp.towers.packed_attention import Packing
from fedpgp.towers.text import TextTower
from fedpgp.towers.triton_attention import TritonAttention

ROOT = Path(__file__).resolve().parents[3]
TESTS = ("tests/fedpgp/test_gpu.py", "tests/fedpgp/towers/test_triton_attention.py")
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = {  # of Triton's kernels: tile, warps, products of float32
    "float32": [
        (16, 4, "ieee"),
        (16, 8, "ieee"),
        (32, 8, "ieee"),
        (16, 4, "tf32x3"),
        (32, 8, "tf32x3"),
    ],
    "bfloat16": [(16, 4, "ieee"), (32, 2, "ieee"), (32, 4, "ieee"), (64, 4, "ieee")],
}
TEXTBOOK = 100
"""Most classes with which the textbook step is run too: with more it takes seconds."""

TIMED = ["promptfl", "cocoop", "plot", "vpt", "maple", "promptsrc", "pfedmma", "fedmvp"]
TIMED += ["fedit"]
"""Methods whose step is timed: one that is recorded, and those of which all or part is not by
default."""


Cases = Iterator[tuple[dict, Callable[[], dict]]]
"""What is measured, and the function that does it and returns the rest of the row."""


def gpu_tests(options: argparse.Namespace) -> Cases:
    """The tests marked gpu, in several processes where pytest can."""

    def run() -> dict:
        words = [sys.executable, "-m", "pytest", "-rfE", "-m", "gpu", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            words += ["-n", str(min(8, os.cpu_count() or 1))]
        if not importlib.util.find_spec("flwr"):  # a whole run is not to be had
            words += ["-k", "not a_run_on_the_gpu"]
        try:
            done = subprocess.run(
                [*words, *TESTS], cwd=ROOT, capture_output=True, text=True, timeout=120
            )
        except subprocess.TimeoutExpired as error:
            return {"exit_status": None, "said": [str(error.stdout)[-2000:]]}
        return {"exit_status": done.returncode, "said": done.stdout.splitlines()[-30:]}

    yield {"part": "tests", "files": list(TESTS)}, run


def peaks(options: argparse.Namespace) -> Cases:
    """A large matrix product in each precision."""
    size = 8192 if options.device.type == "cuda" else 256
    for dtype in options.dtypes:

        def run(dtype=dtype) -> dict:
            a, b = (
                torch.randn(size, size, device=options.device, dtype=COMPUTE[dtype])
                for _ in range(2)
            )
            seconds, _ = in_turn(lambda: a @ b, lambda: None, options.repeats)
            return {"gflops": 2 * size**3 / 1e9 / statistics.median(seconds)}

        yield {"part": "peak", "dtype": dtype, "size": size}, run


@cache
def model(name: str, device: torch.device) -> FrozenCLIP:
    """With random weights, built once: that takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are the point here
        return load_clip(name, "random", device)


def task_of(options: argparse.Namespace, classes: int, dtype: str) -> Task:
    """A new one, so that its encoders have the attention that is asked for now."""
    compute = torch.bfloat16 if dtype == "bfloat16" else None
    clip = model(options.model, options.device)
    return Task(clip, class_names(classes), n_ctx=CONTEXT, compute=compute)


@contextmanager
def attention_is(kind: str | None) -> Iterator[None]:
    """Inside the block encoders are made with this attention."""
    before, TextTower.attention = TextTower.attention, kind
    try:
        yield
    finally:
        TextTower.attention = before


def _each(options: argparse.Namespace, part: str, row: Callable[..., dict]) -> Cases:
    """Cases of a part: each attention, precision, number of classes and of clients."""
    lists = (options.attention, options.dtypes, options.classes, options.clients)
    for kind, dtype, classes, clients in itertools.product(*lists):
        case = {"part": part, "attention": kind, "dtype": dtype}
        case |= {"classes": classes, "clients": clients}
        yield case, partial(row, options, dtype, classes, clients, kind)


def attentions(options: argparse.Namespace) -> Cases:
    """Attention alone, one block's, of both contexts of each client."""
    yield from _each(options, "attention", attention_row)


def tiles(options: argparse.Namespace) -> Cases:
    """Triton's attention with other tiles, at 100 classes (or the first number) and most
    clients."""
    classes = 100 if 100 in options.classes else options.classes[0]
    for dtype in options.dtypes:
        for variant in VARIANTS[dtype]:
            tile, warps, products = variant
            case = {"part": "tiles", "dtype": dtype, "classes": classes}
            case |= {"clients": max(options.clients)}
            case |= {"tile": tile, "warps": warps, "products": products}

            def run(dtype=dtype, variant=variant) -> dict:
                return attention_row(
                    options, dtype, classes, max(options.clients), "triton", variant
                )

            yield case, run


def attention_row(
    options: argparse.Namespace,
    dtype: str,
    classes: int,
    clients: int,
    kind: str,
    variant: tuple[int, int, str] | None = None,
) -> dict:
    """Milliseconds of forward and backward, recorded, the copies into and out of the recording
    among them; and how far the values are from the packed ones in float64 (one client's, at most
    100 classes')."""
    encoder = task_of(options, classes, dtype).class_set(range(classes)).encoder(CONTEXT)
    tower, groups, prefix = encoder.tower, encoder.groups, 1 + CONTEXT
    about = prefix, tower.heads, tower.width
    if variant is None:
        how = attention_of(kind, *about, groups, tower.compute, tower.device)
    else:
        lengths = [group.length for group in groups for _ in range(group.count)]
        options_of = dict(zip(("tile", "warps", "products"), variant, strict=True))
        how = TritonAttention(*about, lengths, tower.compute, tower.device, **options_of)
    torch.manual_seed(0)
    shape = 2 * clients, encoder.tokens, 3 * tower.width
    qkv = torch.randn(shape, device=tower.device).div(3).to(tower.compute).requires_grad_()
    graphs, weights = Graphs(), torch.randn(*shape[:2], tower.width, device=tower.device)
    weights = weights.to(tower.compute)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        y = graphs(how, how.attend, qkv)
        return y, torch.autograd.grad(y, qkv, weights)[0]

    seconds, _ = in_turn(both, lambda: None, options.repeats)
    row = {"ms": 1e3 * statistics.median(seconds), "recorded": len(graphs)}
    if classes <= TEXTBOOK and clients == 1:
        exact = qkv.detach().double().requires_grad_()
        true = Packing(prefix, tower.heads, groups).attend(exact)
        (true_grad,) = torch.autograd.grad(true, exact, weights.double())
        row["difference"], row["gradient_difference"] = (
            ((ours - theirs).norm() / theirs.norm()).item()
            for ours, theirs in zip(both(), (true, true_grad), strict=True)
        )
    return row | {"peak_mb": peak_memory(both)}


def steps(options: argparse.Namespace) -> Cases:
    """A step of FedPGP with each attention."""

    def row(options: argparse.Namespace, dtype: str, classes: int, clients: int, kind: str) -> dict:
        with attention_is(kind):
            return step_row(options, task_of(options, classes, dtype), clients)

    yield from _each(options, "step", row)


def step_row(options: argparse.Namespace, task: Task, clients: int) -> dict:
    """Milliseconds of a step, its share of the speed of products, what no kernel runs; of one
    client also the textbook step and the differences from it."""
    method, params, batch, classes = setting_of(task, clients)

    def ours():
        return method.gradients(params, batch, classes, STEP)

    seconds, _ = in_turn(ours, lambda: None, options.repeats)
    median = statistics.median(seconds)
    row = {
        "ms_per_client": 1e3 * median / clients,
        "ms_least": 1e3 * min(seconds) / clients,
        "ms_most": 1e3 * max(seconds) / clients,
        **speed(classes, clients, median),
        **recordings(classes.encoder(task.n_ctx).tower.graphs),
        **kernels(ours, median),
        "peak_mb": peak_memory(ours),
    }
    if clients == 1 and len(classes.names) <= TEXTBOOK:

        def plain():
            return plain_step(method, params, batch, classes)

        (loss, grads), (plain_loss, plain_grads) = ours(), plain()
        slow, _ = in_turn(plain, lambda: None, 2)
        row["textbook_ms"] = 1e3 * statistics.median(slow)
        row["ratio"] = statistics.median(slow) / median
        row["loss_difference"] = relative(loss, plain_loss)
        row["gradient_difference"] = max(relative(grads[n], plain_grads[n]) for n in grads)
    return row


def recordings(*of: Graphs) -> dict:
    """Return how many there are, and whether one failed: it is tried again from then on, so that
    later cases are not measured without."""
    failed = [graphs for graphs in of if not graphs.enabled]
    for graphs in failed:
        graphs.enabled = True
    return {"recorded": sum(map(len, of)), "recording_failed": bool(failed)}


def kernels(function: Callable, seconds: float) -> dict:
    """Return what :func:`busy` says of three calls under the profiler; nothing on a CPU.

    Args:
        function: is called.
        seconds: of a call without the profiler.
    """
    on_gpu, calls = torch.cuda.is_available(), 3
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            function()
        if on_gpu:
            torch.cuda.synchronize()
    return busy(found.key_averages(), calls, seconds)


def busy(events: Iterable, calls: int, seconds: float) -> dict:
    """Return the part of a call's time in which the GPU runs no kernel and copies nothing (one
    stream: its kernels run one after the other), and the milliseconds of those that take most.

    Args:
        events: the profiler's averages.
        calls: that were profiled.
        seconds: of a call.
    """
    ran = [event for event in events if event.device_type != DeviceType.CPU]
    ms = {event.key[:80]: event.self_device_time_total / 1e3 / calls for event in ran}
    if not ms:
        return {}
    most = sorted(ms, key=ms.get, reverse=True)[:12]
    return {
        "outside_kernels": max(0.0, 1 - sum(ms.values()) / 1e3 / seconds),
        "kernels": {name: round(ms[name], 4) for name in most},
    }


def methods_steps(options: argparse.Namespace) -> Cases:
    """A step of other methods, one client, at the first number of classes, in float32: with what is
    recorded by default, and with all that can be."""
    for name in options.methods:
        for more in (False, True):

            def run(name=name, more=more) -> dict:
                before, Graphs.more = Graphs.more, more
                try:
                    return method_row(options, name)
                finally:
                    Graphs.more = before

            case = {"part": "methods", "method": name, "more": more}
            yield case | {"classes": options.classes[0]}, run


def method_row(options: argparse.Namespace, name: str) -> dict:
    """Milliseconds of a step, and how far its gradients are from those of passes that run as they
    are."""
    case = methods.Case.of(methods.method_of(name, task_of(options, options.classes[0], "float32")))
    seconds, _ = in_turn(case.run, lambda: None, options.repeats)
    median, (_, grads) = statistics.median(seconds), case.run()
    with eager():
        _, plain = case.run()
    text_tower = TextTower.of(case.method.task.clip, torch.float32, None)
    image_tower = getattr(case.method, "tower", None)
    towers = [text_tower] if image_tower is None else [text_tower, image_tower]
    return {
        "images": case.images,
        "ms": 1e3 * median,
        "own_gflop": case.work.gflop,
        "gflops": case.work.gflop / median,
        "gradient_difference": max(relative(grads[n], plain[n]) for n in grads if plain[n].any()),
        **recordings(*(tower.graphs for tower in towers)),
        **kernels(case.run, median),
        "peak_mb": peak_memory(case.run),
    }


PARTS = {
    "peak": peaks,
    "step": steps,
    "attention": attentions,
    "tests": gpu_tests,
    "tiles": tiles,
    "methods": methods_steps,
}
"""Name -> its cases, those first that decide most."""
