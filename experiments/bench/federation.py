"""A federation at work.

``round``: local training of some of the default federation's clients as one cohort, against the
textbook loop: one client after another, full sequences for every class, the guidance pass in
every step, torch's own SGD.

``run``: a whole run on two Ray workers: how much of its time is neither training nor
evaluation, and whether its memory grows with the rounds. Once with the default clients, once
with 2,000 of which a tenth takes part in a round; these own two made-up images each (the
embedded federation has not enough).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from experiments.bench.measure import in_turn, peak_memory, relative
from experiments.bench.step import textbook_loss
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.federation import Federation
from fedpgp.training import batches

MANY = 2000
CLIENTS_IN_ROUND = 4
SAMPLING = 0.2
"""Seconds between two looks at a run's memory."""


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for the round, one for each run."""
    clients = arguments.clients or 24
    yield _round(arguments, clients)
    yield _run(arguments, clients, [])
    with tempfile.TemporaryDirectory() as folder:
        _made_up(Path(folder))
        options = ["participation=0.1", "partition=iid", "protocol=personal", "evaluate_every=0"]
        yield _run(arguments, MANY, [*options, "dataset=folder", f"dataset.root='{folder}'"])


def _made_up(root: Path) -> None:
    """Images of noise, two of each split a client, in ten classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(2 * MANY):
            folder = root / split / f"class {i % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                folder / f"{i}.png"
            )


def _round(arguments: argparse.Namespace, clients: int) -> dict:
    overrides = [f"clients={clients}", "runtime=inline", f"device={arguments.device}"]
    config = composed([*overrides, *([f"model={arguments.model}"] if arguments.model else [])])
    federation = build_federation(config)
    federation.inputs.encode()
    shared = federation.models.initial_shared()
    chosen = list(range(0, clients, max(1, clients // CLIENTS_IN_ROUND)))[:CLIENTS_IN_ROUND]

    def ours() -> list[np.ndarray]:
        found = {r.client: r.update["p_G"] for r in federation.train(shared, chosen, 1, {}.get)}
        return [found[client] for client in chosen]

    def plain() -> list[np.ndarray]:
        return [_textbook_client(federation, shared, client) for client in chosen]

    difference = relative(torch.from_numpy(np.stack(ours())), torch.from_numpy(np.stack(plain())))
    fast, slow = in_turn(ours, plain, arguments.repeats)
    return {
        "bench": "federation",
        "what": "round",
        "clients": len(chosen),
        "images": sum(len(federation.federated_split.clients[client].train) for client in chosen),
        "ms": 1e3 * statistics.median(fast),
        "reference_ms": 1e3 * statistics.median(slow),
        "ratio": statistics.median(slow) / statistics.median(fast),
        "peak_mb": peak_memory(ours),
        "largest_difference": difference,
    }


def _textbook_client(
    federation: Federation, shared: dict[str, np.ndarray], client: int
) -> np.ndarray:
    """p_G after one client's round, step by step."""
    method, settings, client_split = (
        federation.method,
        federation.training,
        federation.federated_split.clients[client],
    )
    task = method.task
    start = {
        **{n: torch.from_numpy(a) for n, a in shared.items()},
        **federation.models.initial_state(client),
    }
    leaves = {
        name: tensor.to(task.device, task.dtype).clone().requires_grad_()
        for name, tensor in start.items()
    }
    optimizer = torch.optim.SGD(
        leaves.values(),
        lr=settings.learning_rate(1),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    classes = federation.class_set(client_split.classes)
    images, labels = (
        federation.inputs.images("train"),
        federation.inputs.labels("train", client_split.classes),
    )
    for positions in batches(len(client_split.train), settings, federation.seed, client, 1):
        index = torch.from_numpy(client_split.train[positions])
        weights = torch.full((len(index),), 1 / len(index), dtype=task.dtype, device=task.device)
        optimizer.zero_grad()
        textbook_loss(method, leaves, images[index], labels[index], weights, classes).backward()
        optimizer.step()
    return leaves["p_G"].detach().cpu().numpy()


def _run(arguments: argparse.Namespace, clients: int, options: Sequence[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "experiments.run",
            f"clients={clients}",
            f"rounds={arguments.rounds}",
        ]
        command += ["runtime.workers=2", f"device={arguments.device}", f"run_dir={where}", *options]
        command += [f"model={arguments.model}"] if arguments.model else []
        memory = _watched(command, where / "metrics.jsonl")
        summary = json.loads((where / "summary.json").read_text())
    seconds = summary["seconds"]
    early, late = (memory[round] for round in (min(memory), max(memory)))
    return {
        "bench": "federation",
        "what": "run",
        "clients": clients,
        "rounds": arguments.rounds,
        "seconds": seconds["total"],
        "train_seconds": seconds["train"],
        "evaluate_seconds": seconds["evaluate"],
        "overhead_seconds": seconds["overhead"],
        "overhead_share": seconds["overhead"] / seconds["total"],
        "wire_bytes_down": summary["wire_bytes_down"],
        "wire_bytes_up": summary["wire_bytes_up"],
        "memory_first_round_mb": early,
        "memory_last_round_mb": late,
    }


def _watched(command: Sequence[str], metrics: Path) -> dict[int, float]:
    """Run a command; the most memory (MiB, all its processes together, shared pages once) in each
    round."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most: dict[int, float] = {}
    while process.poll() is None:
        round = metrics.read_text().count('"kind": "train"') if metrics.exists() else 0
        total = sum(_unique_bytes(each) for each in [process, *process.children(recursive=True)])
        most[round] = max(most.get(round, 0.0), total / 2**20)
        time.sleep(SAMPLING)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode())
    return {round: memory for round, memory in most.items() if round} or most


def _unique_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it has just ended
        return 0
