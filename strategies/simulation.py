"""runtime=ray: Flower's simulation engine on Ray, one node per worker, on this machine or on a cluster.

The only place that starts Ray and that calls ``run_simulation``, which Flower marks deprecated and which is still its
only in-process entry.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedpgp.errors import FedPGPError
from strategies.grid import Bell
from strategies.ray_session import private_session
from strategies.shortcuts import START, bare, carried, hung_up, in_turn

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
        bell: rings when there is a reply.
    """

    count: int
    threads: int
    resources: dict[str, float]
    bell: Bell = field(default_factory=Bell)

    def run(self, server_app: ServerApp, client_app: ClientApp, *, verbose: bool = False) -> None:
        """Runs both apps to the end of the ServerApp. Ray has to be up (:func:`ray_cluster`)."""
        from flwr.simulation import run_simulation

        # A worker that dies is started again, anywhere in the cluster (its clients get a second try: strategies.grid).
        resources = {**self.resources, "max_restarts": -1}
        with hung_up(self.bell), in_turn(), carried():
            run_simulation(
                server_app,
                client_app,
                num_supernodes=self.count,
                backend_config={"client_resources": resources, "init_args": {}},
                verbose_logging=verbose,
            )


@contextmanager
def ray_cluster(runtime: Mapping, device: str, clients: int, *, verbose: bool = False) -> Iterator[Workers]:
    """Starts a Ray of this run alone on this machine, or joins ``runtime.address``, and leaves it at the end.

    Args:
        runtime, device: of the configuration.
        clients: number of logical clients; no more workers are of use.
        verbose: lets Ray speak.

    Raises:
        FedPGPError: no cluster at that address, or no resources for a single worker.
    """
    quiet(verbose)
    address = runtime["address"]
    paths = [
        str(Path(__file__).resolve().parents[1]),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys(paths)
    )  # workers find these packages without an installation
    with _joined(address, verbose) if address else _started(_local_workers(runtime, device, clients), verbose) as local:
        import ray

        if not verbose:
            # Ray tells the driver's standard output about every worker that ends, whatever log_to_driver says.
            ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None
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
            why += "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (docs/cluster.md)"
        raise FedPGPError(f"cannot join the Ray cluster at runtime.address={address}: {why}") from error
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
        import ray  # reads the environment

        options = {
            "num_cpus": workers.count,
            "num_gpus": None if workers.resources["num_gpus"] else 0,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": session.temp_dir,
            **_options(verbose),
        }
        try:
            # Ray's log monitor is what brings the messages of its processes to the terminal.
            with nullcontext() if verbose else bare():
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


def _local_workers(runtime: Mapping, device: str, clients: int) -> Workers:
    cores, gpus = usable_cores(), visible_gpus(device)
    share = float(runtime["gpus_per_worker"]) if gpus else 0.0
    if gpus:
        count = min(runtime["workers"] or max(1, int(gpus / share)), clients)
        if count * share > gpus:
            raise FedPGPError(
                f"runtime.workers={count} x runtime.gpus_per_worker={share:g} is more than the {gpus} GPUs there are; "
                f"try runtime.gpus_per_worker={gpus / count:.2g}"
            )
    else:
        count = min(runtime["workers"] or min(cores, MOST_WORKERS), clients)
    return Workers(count, max(1, cores // count), {"num_cpus": 1, "num_gpus": share})


def _cluster_workers(runtime: Mapping, device: str, clients: int, nodes: list[dict]) -> Workers:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = 0 if device == "cpu" else sum(resources.get("GPU", 0) for resources in alive)
    share = float(runtime["gpus_per_worker"]) if gpus else 0.0

    def fit(cpus: int) -> int:  # as Flower counts its actors
        places = [int(r.get("CPU", 0) / cpus) for r in alive]
        return sum(min(n, int(r.get("GPU", 0) / share)) if share else n for n, r in zip(places, alive, strict=True))

    cpus = 1
    wanted = min(runtime["workers"] or fit(cpus), clients)
    if runtime["workers"] or wanted < fit(cpus):
        # Flower starts as many as fit: make each larger until that is no more than wanted.
        while fit(cpus + 1) >= wanted:
            cpus += 1
    if not fit(cpus):
        raise FedPGPError(f"the Ray cluster has no room for a worker with {cpus} CPU and {share:g} GPU")
    return Workers(min(fit(cpus), wanted), cpus, {"num_cpus": cpus, "num_gpus": share})


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device: str) -> int:
    """CUDA devices, 0 where another device was asked for."""
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def quiet(verbose: bool) -> None:
    """Silences the libraries' own chatter (banners, deprecation notices, tracebacks of errors that are reported
    anyway).
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logger = logging.getLogger("flwr")
    if verbose:
        logger.setLevel(logging.DEBUG)
        return
    logger.setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
