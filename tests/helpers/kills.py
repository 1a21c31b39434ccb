"""kill -9 at random moments, and whether anything was lost.

    python -m tests.helpers.kills --simulation 10 --server 10 --node 10

A *simulation* is killed whole, a *server* while its clients live on, a *node* is killed and started
again. A killed simulation or server is resumed, and must end with the tensors and figures of a run
that was never killed. A run whose node was killed must end by itself; a replay that drops the same
clients in the same rounds must give the same.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from clients.client_app import client_app
from clients.messages import Job
from experiments.runner import resume, start
from experiments.runtimes.local_processes import LocalProcesses
from experiments.settings import composed
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import launch
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_federation

REAL = [
    "dataset.domains=[noto]",
    "partition=dirichlet",
    "partition.beta=0.5",
    "clients=2",
    "rounds=4",
    "shots=2",
]
REAL += ["local_epochs=1", "evaluate_every=1", "dtype=float64", "device=cpu"]
SLOW = 0.3
"""Seconds a round of the small simulation is made to take."""


def outcome(run: Path) -> tuple[dict[str, np.ndarray], list[dict], dict]:
    """Final tensors, figures of every round, and accuracies."""
    tensors, _ = read_checkpoint(checkpoints(run / "checkpoint")[-1])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if k not in ("seconds", "bytes_up", "bytes_down", "dropped")}
        for line in lines
    ]
    return tensors, kept, json.loads((run / "summary.json").read_text())


def equal(one: Path, other: Path) -> bool:
    """The same end, to rounding."""
    (ours, our_lines, summary), (theirs, their_lines, _) = outcome(one), outcome(other)
    close = all(
        np.allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-12, equal_nan=True)
        for name in theirs
    )
    return close and summary["status"] == "finished" and _flat(our_lines) == _flat(their_lines)


def _flat(lines: object) -> object:
    """With floats rounded, so that what is equal to 1e-9 is equal."""
    if isinstance(lines, float):
        return float(f"{lines:.7g}")
    if isinstance(lines, dict):
        return {key: _flat(value) for key, value in lines.items()}
    return [_flat(value) for value in lines] if isinstance(lines, list) else lines


def saved_round(run: Path) -> int:
    """The round that the newest checkpoint holds, -1 where there is none."""
    found = checkpoints(run / "checkpoint")
    return read_checkpoint(found[-1])[1]["round"] if found else -1


def simulations(folder: Path, count: int, rng: np.random.Generator):
    """Rows (kind, number, moment, after round, result)."""
    whole = folder / "whole"
    process = launch("start", whole, "rounds=5", faults={"slow": SLOW})
    _wait((whole / "config.yaml").exists)
    began = time.monotonic()
    process.communicate()
    lasted = time.monotonic() - began
    for number in range(count):
        run, moment = folder / f"run_{number}", float(rng.uniform(0.0, lasted))
        process = launch("start", run, "rounds=5", faults={"slow": SLOW})
        while not (run / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moment)
        process.kill()
        process.communicate()
        done = saved_round(run)
        resume(run, federation_of=small_federation)
        yield "simulation", number, moment, done, "equal" if equal(run, whole) else "DIFFERS"


def deployments(folder: Path, servers: int, nodes: int, rng: np.random.Generator):
    """Rows as of :func:`simulations`, with real processes."""
    cache = f"runtime.cache_dir={folder / 'features'}"
    whole = folder / "whole"
    start(composed([*REAL, "runtime=inline", cache, f"run_dir={whole}"]))
    sites = [{"client-id": client, "cache-dir": str(folder / "features")} for client in range(2)]
    with LocalProcesses(folder / "nodes", sites) as federation:
        for number in range(servers):
            run, moment = folder / f"server_{number}", float(rng.uniform(0, 50))
            words = [*REAL, "runtime.round_timeout=60", f"run_dir={run}"]
            victim = threading.Thread(target=_run, args=(federation, words), daemon=True)
            victim.start()
            _wait(lambda run=run: (run / "config.yaml").exists())
            end = time.monotonic() + moment
            while time.monotonic() < end and victim.is_alive():
                time.sleep(0.1)
            for process in federation.server_apps():
                process.kill()
            _wait(lambda: not federation.server_apps())
            done = saved_round(run)
            federation.run([f"resume={run}"], lambda line: None)
            victim.join(60)
            yield "server", number, moment, done, "equal" if equal(run, whole) else "DIFFERS"
        for number in range(nodes):
            run, moment, node = (
                folder / f"node_{number}",
                float(rng.uniform(0, 50)),
                int(rng.integers(2)),
            )
            words = [*REAL, "runtime.round_timeout=30", f"run_dir={run}"]
            runner = threading.Thread(target=_run, args=(federation, words), daemon=True)
            runner.start()
            _wait(
                lambda run=run: (
                    (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0
                )
            )
            time.sleep(moment)
            federation.kill_node(node)
            federation.bring_back(node)
            runner.join(400)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            drops = {
                (e["client"], line["round"])
                for line in lines
                if "dropped" in line
                for e in line["dropped"]
            }
            replay(folder / f"replay_{number}", drops, sites, cache)
            (ours, _, us), (theirs, *_) = outcome(run), outcome(folder / f"replay_{number}")
            same = all(
                np.allclose(ours[n], theirs[n], rtol=1e-9, atol=1e-12)
                for n in theirs
                if not n.startswith("zero")
            )
            result = "equal" if same and us["status"] == "finished" else "DIFFERS"
            yield "node", number, moment, f"dropped {sorted(drops)}", result


def replay(run: Path, drops: set[tuple[int, int]], sites: list[dict], cache: str) -> None:
    """The same run in this process, in which these clients fail in these rounds."""
    configs = [
        {**site, "state-dir": str(run.with_name(f"{run.name}_state_{i}"))}
        for i, site in enumerate(sites)
    ]

    def before(nodes: Nodes, node: int, message) -> None:
        job = Job.of(message.content)
        if message.metadata.message_type == "train" and (job.clients[0], job.server_round) in drops:
            raise RuntimeError("dropped, as it was")

    node_registry.INTERVAL = 0.0
    overrides = [*REAL, "runtime=flower", cache, f"run_dir={run}"]
    start(composed(overrides), grid=Nodes(client_app(), configs, before))


def _run(federation: LocalProcesses, words: list[str]) -> None:
    federation.run(words, lambda line: None)


def _wait(until, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("it did not come")
        time.sleep(0.05)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in ("simulation", "server", "node"):
        parser.add_argument(f"--{kind}", type=int, default=0, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    print(
        "| killed | | after (s) | last saved round | end |\n| --- | --- | --- | --- | --- |",
        flush=True,
    )
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        rows = (
            [simulations(Path(folder) / "a", options.simulation, rng)] if options.simulation else []
        )
        if options.server or options.node:
            rows.append(deployments(Path(folder) / "b", options.server, options.node, rng))
        for kind, number, moment, done, result in (row for group in rows for row in group):
            print(
                f"| {kind} | {number + 1} | {moment:.1f} | {done} | {result} |",
                file=sys.stderr,
                flush=True,
            )
            bad += result != "equal"
    left = [
        p
        for p in psutil.Process().children(recursive=True)
        if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    ]
    print(
        f"\n{bad} of {options.simulation + options.server + options.node} differ, {len(left)} "
        "processes left"
    )
    return int(bad > 0 or bool(left))


if __name__ == "__main__":
    sys.exit(main())
