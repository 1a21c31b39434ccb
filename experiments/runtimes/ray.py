"""runtime=ray: the simulation on Ray workers, on this machine or on a cluster. The only
place that starts Ray."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from experiments.quiet import quiet
from experiments.runtimes.ray_session import private_session
from fedpgp.config import RuntimeSection
from fedpgp.errors import FedPGPError

START = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    "RAY_enable_worker_prestart": "1",
}
"""Environment of a Ray that starts here: it looks for its own parts every 20 ms, where by itself it
waits a whole second for the first, and starts the workers' processes meanwhile."""

MOST_WORKERS = 8
"""Workers on one machine unless asked for more: each holds its own copy of torch and the model."""

STORE_BYTES = 512 * 2**20
"""Ray's shared memory for messages in flight."""


@dataclass(frozen=True)
class Workers:
    """How a simulation is spread.

    Attributes:
        count: workers, and so Flower nodes.
        threads: torch threads of each.
        resources: what each asks of Ray.
    """

    count: int
    threads: int
    resources: dict[str, float]

    def run(self, server_app: ServerApp, make_client_app: Callable[[], ClientApp]) -> None:
        """Run both apps to the end of the ServerApp. Ray has to be up (:func:`ray_cluster`)."""
        from experiments.runtimes.ray_grid import RayGrid

        grid = RayGrid(make_client_app, self.count, self.resources)
        try:
            server_app(grid, Context(0, 0, {}, RecordDict(), {}))
        finally:
            grid.close()


@contextmanager
def ray_cluster(
    runtime: RuntimeSection, device: str, clients: int, *, verbose: bool = False
) -> Iterator[Workers]:
    """Start a Ray of this run alone on this machine, or join ``runtime.address``,
    and leave it at the end.

    Args:
        runtime, device: of the configuration.
        clients: number of logical clients; no more workers are of use.
        verbose: lets Ray speak.

    Raises:
        FedPGPError: no cluster at that address, or no resources for a single worker.
    """
    quiet(verbose)
    address = runtime.address
    paths = [
        str(Path(__file__).resolve().parents[2]),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys(paths)
    )  # workers find these packages without an installation
    with (
        _joined(address, verbose)
        if address
        else _started(_local_workers(runtime, device, clients), verbose) as local
    ):
        import ray

        yield local or _cluster_workers(runtime, device, clients, ray.nodes())


@contextmanager
def _joined(address: str, verbose: bool) -> Iterator[None]:
    """A cluster that is there already."""
    import ray

    try:
        environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        ray.init(address=address, runtime_env=environment, **_options(verbose))
    except Exception as error:
        why = _first_line(error)
        if os.environ.get("RAY_AUTH_MODE") != "token":  # Ray does not say that this is the reason
            why += (
                "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                "(docs/cluster.md)"
            )
        raise FedPGPError(
            f"cannot join the Ray cluster at runtime.address={address}: {why}"
        ) from error
    try:
        yield None
    finally:
        ray.shutdown()


@contextmanager
def _started(workers: Workers, verbose: bool) -> Iterator[Workers]:
    """A Ray on this machine that nobody else may use."""
    for name, value in START.items():
        os.environ.setdefault(name, value)
    with private_session() as session:
        import ray

        options = {
            "num_cpus": workers.count,
            "num_gpus": None if workers.resources["num_gpus"] else 0,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": session.temp_dir,
            **_options(verbose),
        }
        try:
            ray.init(address="local", **options)
        except Exception as error:
            session.keep = True
            logs = f"its logs: {session.folder}"
            raise FedPGPError(f"cannot start Ray: {_first_line(error)}; {logs}") from error
        try:
            yield workers
        finally:
            ray.shutdown()


def _options(verbose: bool) -> dict[str, object]:
    return {
        "include_dashboard": False,
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }


def _first_line(error: Exception) -> str:
    """Ray raises whatever it likes, a plain Exception where it takes too long."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _local_workers(runtime: RuntimeSection, device: str, clients: int) -> Workers:
    cores, gpus = usable_cores(), visible_gpus(device)
    gpu = runtime.gpus_per_worker if gpus else 0.0
    if gpus:
        count = min(runtime.workers or max(1, int(gpus / gpu)), clients)
        if count * gpu > gpus:
            raise FedPGPError(
                f"runtime.workers={count} x runtime.gpus_per_worker={gpu:g} is more than the "
                f"{gpus} GPUs there are; try runtime.gpus_per_worker={gpus / count:.2g}"
            )
    else:
        count = min(runtime.workers or min(cores, MOST_WORKERS), clients)
    return Workers(count, max(1, cores // count), {"num_cpus": 1, "num_gpus": gpu})


def _cluster_workers(
    runtime: RuntimeSection, device: str, clients: int, nodes: list[dict]
) -> Workers:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = 0 if device == "cpu" else sum(resources.get("GPU", 0) for resources in alive)
    gpu = runtime.gpus_per_worker if gpus else 0.0

    def fit(cpus: int) -> int:
        places = [int(r.get("CPU", 0) / cpus) for r in alive]
        return sum(
            min(n, int(r.get("GPU", 0) / gpu)) if gpu else n
            for n, r in zip(places, alive, strict=True)
        )

    cpus = 1
    wanted = min(runtime.workers or fit(cpus), clients)
    while 0 < wanted <= fit(cpus + 1):  # fewer workers than cores: each has several
        cpus += 1
    if not fit(cpus):
        raise FedPGPError(
            f"the Ray cluster has no room for a worker with {cpus} CPU and {gpu:g} GPU"
        )
    return Workers(min(fit(cpus), wanted), cpus, {"num_cpus": cpus, "num_gpus": gpu})


def usable_cores() -> int:
    """Return CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device: str) -> int:
    """Return CUDA devices, 0 where another device was asked for."""
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()
