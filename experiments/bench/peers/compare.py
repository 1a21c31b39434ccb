"""The comparison: this project, a plain Flower simulation and pfl-research train the same problem,
each as a program of its own, one after the other.

A round counts from the end of the first: what is loaded lazily is start-up on every side.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.bench.measure import relative
from experiments.bench.peers.problem import Problem
from experiments.bench.peers.records import ROUNDS, read_prompts
from experiments.bench.peers.watched import Watched, watch
from experiments.runtimes.ray import usable_cores
from experiments.settings import composed
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint

METHODS = ("promptfl", "fedpgp")
SAME, COMPARED = 1e-4, 2
"""Largest relative difference of a round's loss between two that train the same, and the rounds of
which it is asked: float32's rounding grows from round to round."""


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """A row for each method and simulator."""
    check_installed()
    if arguments.rounds < 2:
        raise FedPGPError(
            f"--rounds {arguments.rounds}: the first round is start-up; take 2 or more"
        )
    if arguments.device not in ("auto", "cpu"):
        raise FedPGPError(f"--device {arguments.device}: peers are compared on the CPU")
    chosen = arguments.methods or METHODS
    if unknown := [name for name in chosen if name not in METHODS]:
        raise FedPGPError(f"--methods {unknown[0]}: peers have {' and '.join(METHODS)} alone")
    options = [f"clients={arguments.clients or 24}", f"rounds={arguments.rounds}"]
    options += [f"model={arguments.model}"] if arguments.model else []
    for method in chosen:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"method={method}", *options]
            yield from compared(SIDES, overrides, arguments.workers, Path(folder))


def check_installed() -> None:
    """Refuse to begin without pfl-research.

    Raises:
        FedPGPError: saying what to install.
    """
    if importlib.util.find_spec("pfl") is None:
        raise FedPGPError("peers needs the package pfl: pip install 'fedpgp[bench-peers]'")


@dataclass(frozen=True)
class Side:
    """One of those who are compared.

    Attributes:
        name: what its row says.
        command: folder, problem and overrides -> what is run.
        file: of the round's records, in its folder.
        prompts: folder -> the global tensors in the end.
    """

    name: str
    command: Callable[[Path, Problem, Sequence[str]], list[str]]
    file: str
    prompts: Callable[[Path], dict[str, Tensor]]


def _run_command(folder: Path, problem: Problem, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "experiments.run", *overrides, f"run_dir={folder}"]


def _flower_command(folder: Path, problem: Problem, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "experiments.bench.peers.plain_flower", str(folder)]


def _pfl_command(folder: Path, problem: Problem, overrides: Sequence[str]) -> list[str]:
    processes = problem.settings.workers
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = ["-m", "experiments.bench.peers.pfl_research", str(folder)]
    return [sys.executable, *(launcher if processes > 1 else []), *program]


def _run_prompts(folder: Path) -> dict[str, Tensor]:
    tensors, _ = read_checkpoint(checkpoints(folder / "checkpoint")[-1])
    shared = {name: array for name, array in tensors.items() if name.startswith("shared/")}
    return {name.removeprefix("shared/"): torch.from_numpy(a) for name, a in shared.items()}


OURS = Side("this project", _run_command, "metrics.jsonl", _run_prompts)
FLOWER = Side("flower", _flower_command, ROUNDS, read_prompts)
PFL = Side("pfl", _pfl_command, ROUNDS, read_prompts)
SIDES = (OURS, FLOWER, PFL)


def compared(
    sides: Sequence[Side], overrides: Sequence[str], workers: int, folder: Path
) -> Iterator[dict]:
    """Run each side; return their rows.

    Args:
        sides: who is compared, with the first.
        overrides: of the run.
        workers: processes that train side by side; 0: one, with all cores (of this project:
            runtime=inline).
        folder: where everything is kept.

    Raises:
        FedPGPError: a side failed, or the losses are not the same.
    """
    processes = max(1, workers)
    runtime = [f"runtime.workers={workers}"] if workers else ["runtime=inline"]
    common = [*overrides, "device=cpu", "evaluate_every=0", f"runtime.cache_dir={folder / 'cache'}"]
    common += runtime
    threads = max(1, usable_cores() // processes)
    problem = Problem.of(composed(common), processes, threads)
    first: tuple[list[float], dict[str, Tensor], float] | None = None
    for side in sides:
        own = folder / side.name.replace(" ", "_")
        if side is not OURS:  # a run makes its folder itself
            own.mkdir()
            problem.save(own)
        watched = watch(side.command(own, problem, common), own / side.file, _environment(threads))
        losses, row = figures(watched, problem)
        prompts = side.prompts(own)
        first = first or (losses, prompts, row["clients_per_second"])
        pairs = zip(losses, first[0], strict=True)
        differences = [abs(loss - ours) / abs(ours) for loss, ours in pairs]
        row["loss_difference"] = max(differences)
        row["prompt_difference"] = max(relative(prompts[n], t) for n, t in first[1].items())
        row["ratio"] = first[2] / row["clients_per_second"]
        if max(differences[:COMPARED]) > SAME:
            raise FedPGPError(f"{side.name} trains something else: losses {losses}, not {first[0]}")
        method = problem.settings.method
        yield {"bench": "peers", "method": method, "what": side.name, **row}


def _environment(threads: int) -> dict[str, str]:
    """Return the threads of each process, and PyTorch's device of pfl-research."""
    return {"OMP_NUM_THREADS": str(threads), "PFL_PYTORCH_DEVICE": "cpu"}


def figures(watched: Watched, problem: Problem) -> tuple[list[float], dict]:
    """Return the loss of each round and the figures of speed and memory.

    An evaluation before round 1, which this project alone makes, is no part of its start-up.
    """
    records = list(zip(watched.records, watched.seconds, strict=True))
    trained = [(record["loss"], then) for record, then in records if record["kind"] == "train"]
    if len(trained) != problem.settings.rounds:
        raise FedPGPError(f"of {problem.settings.rounds} rounds {len(trained)} were recorded")
    losses, ends = zip(*trained, strict=True)
    before = [r["seconds"] for r, _ in records if r["kind"] == "eval" and r["round"] == 0]
    a_round = (ends[-1] - ends[0]) / (len(ends) - 1)
    return list(losses), {
        "clients": problem.settings.clients,
        "rounds": problem.settings.rounds,
        "processes": problem.settings.workers,
        "round_seconds": a_round,
        "clients_per_second": problem.settings.clients / a_round,
        "start_seconds": max(0.0, ends[0] - a_round - sum(before)),
        "peak_mb": watched.peak_mb,
    }
