"""What a whole run costs as its clients become many.

Logical clients that own four training and two test images each, split by the run's own partition.
There is no picture: an image's features are a row of one small table that is made up once and that
all images share. So what is measured is the federation, not the encoder or the disk it reads from.

Each number of clients is a run in a process of its own; it is then resumed for one more round.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from clients.machine import peak_rss_mb
from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.data.base import Dataset, Split
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.protocols import SplitRequest, split_clients
from fedpgp.seeding import generator

COUNTS = (100, 1000, 10_000)
CLASSES = 10
IMAGES = {"train": 4, "test": 2}
"""Images of a client."""
ROWS = 500
"""Rows of the table of features."""
EMBED = 256
"""Width of the features of ``model=tiny``."""


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """A row for each number of clients."""
    if arguments.rounds < 2:
        raise FedPGPError(f"--rounds {arguments.rounds}: the last two are compared; take 2 or more")
    if arguments.model not in (None, "tiny"):
        raise FedPGPError(f"--model {arguments.model}: the features are made up for model=tiny")
    for clients in arguments.clients or COUNTS:
        overrides = run_overrides(
            clients, arguments.per_round, arguments.rounds, arguments.workers, arguments.device
        )
        with tempfile.TemporaryDirectory() as folder:
            yield _measured_aside(overrides, Path(folder) / "run")


def _measured_aside(overrides: Sequence[str], run: Path) -> dict:
    """Return :func:`measured`'s row, of a process of its own, which ends with it."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    aside = spawn.Process(target=_send, args=(sender, overrides, run))
    aside.start()
    sender.close()  # the process has its own: when it ends, nobody waits for a row any more
    try:
        return receiver.recv()
    except EOFError:
        raise FedPGPError("a run did not end; what went wrong is said above") from None
    finally:
        aside.join()


def _send(sender: Connection, overrides: Sequence[str], run: Path) -> None:
    sender.send(measured(overrides, run))


def run_overrides(
    clients: int, per_round: int, rounds: int, workers: int, device: str
) -> list[str]:
    """Return the overrides of a run.

    Args:
        clients: of the run.
        per_round: of them that train in a round.
        rounds: of the run.
        workers: of Ray; 0: inline.
        device: of the model.
    """
    runtime = [f"runtime.workers={workers}"] if workers else ["runtime=inline"]
    return [
        *(f"clients={clients}", f"participation={min(1.0, per_round / clients)}"),
        *(f"rounds={rounds}", "evaluate_every=0", "local_epochs=1"),
        *("model=tiny", "partition=iid", "protocol=personal"),
        *(f"device={device}", *runtime),
    ]


def measured(overrides: Sequence[str], run: Path) -> dict:
    """Run a federation and resume it for a round; return the row.

    Args:
        overrides: :func:`run_overrides`.
        run: the run's folder; not there yet.
    """
    config = composed([*overrides, f"run_dir={run}"])
    inline, began = config["runtime"]["name"] == "inline", time.time()
    with contextlib.redirect_stdout(io.StringIO()):
        summary = start(config, federation_of=made_up_federation)
        # partition.json is written when the clients are set up.
        set_up = (run / "partition.json").stat().st_mtime - began
        total, server_mb = time.time() - began, peak_rss_mb()
        files = [file for file in run.rglob("*") if file.is_file()]
        private = [file for file in files if file.is_relative_to(run / "private")]
        disk_mb, private_mb = _on_disk(files), _on_disk(private)
        made_up_federation.cache_clear()
        began = time.time()
        resume(run, {"rounds": config["rounds"] + 1}, federation_of=made_up_federation)
        resumed = time.time() - began
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["seconds"] for line in metrics if line["kind"] == "train"]
    evaluated = [line for line in metrics if line["kind"] == "eval"]
    first = trained[:-1]
    return {
        "bench": "clients",
        "clients": config["clients"],
        "per_round": round(config["participation"] * config["clients"]),
        "rounds": config["rounds"],
        "evaluated": evaluated[0]["clients"],
        "set_up_seconds": set_up,
        "round_seconds": statistics.median(first),
        "evaluation_seconds": evaluated[0]["seconds"],
        "other_seconds": total - set_up - sum(first) - sum(e["seconds"] for e in evaluated[:-1]),
        "total_seconds": total,
        "resume_seconds": resumed - trained[-1] - evaluated[-1]["seconds"],
        "server_mb": server_mb,
        "workers_mb": 0.0 if inline else summary["peak_rss_mb"] - server_mb,
        "disk_mb": disk_mb,
        "private_mb": private_mb,
        "private_files": len(private),
    }


def _on_disk(files: Sequence[Path]) -> float:
    """MiB that files take, in whole blocks."""
    return sum(512 * file.stat().st_blocks for file in files) / 2**20


@lru_cache(maxsize=1)
def made_up_federation(text: str) -> Federation:
    """Return the federation of a configuration (JSON text), whose images have made-up features;
    the last one is kept in the process."""
    config = json.loads(text)
    rng = generator(config["seed"], "made-up features")
    table = rng.standard_normal((ROWS, EMBED), dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    parts = {part: _NoPictures(part, each * config["clients"]) for part, each in IMAGES.items()}
    names = [f"class {label}" for label in range(CLASSES)]
    dataset = Dataset("made_up", names, "a photo of a {}.", parts["train"], None, parts["test"])
    request = SplitRequest(
        dataset, config["clients"], config["seed"], config["shots"], config["partition"]
    )

    def features(split: str, view: int | None = None) -> np.ndarray:
        return table[np.arange(len(parts[split])) % ROWS]

    return build_federation(config, split_clients(request, config["protocol"]), features)


class _NoPictures(Split):
    """Labels of images that nobody looks at."""

    def __init__(self, name: str, size: int):
        super().__init__(np.arange(size) % CLASSES)
        self.name = name

    def describe(self, i: int) -> str:
        return f"{self.name} {i}"

    @cached_property
    def fingerprint(self) -> str:
        return digest("made up", self.name, str(len(self)))

    def _open(self, i: int) -> Image.Image:
        raise FedPGPError("there is no picture")
