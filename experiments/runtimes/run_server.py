"""Runs server and clients to the end, in the runtime of the configuration."""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from clients.messages import Job
from experiments.callbacks.console import Console
from experiments.runtimes.inline import InlineGrid, run_inline
from experiments.runtimes.ray import ray_cluster
from experiments.stopping import Stopper
from fedpgp.config import RuntimeSection
from strategies.server import Server

HEAD_START = 1.0
"""Seconds that a run waits for its data set and model before it starts Ray beside them."""


def run_server(
    config: Mapping,
    job: Job,
    prepare: Callable[[], object],
    make_server: Callable[..., Server],
    make_app: Callable[[], ClientApp],
    stopper: Stopper,
    console: Console,
    flower: Grid | None,
) -> Server:
    """Run server and clients in the runtime of the configuration, or the server alone
    where Flower runs both."""
    runtime = RuntimeSection.of(config["runtime"])
    deadline = float(runtime.round_timeout or 0)
    if flower is not None:
        stopper.install()  # Flower has handlers of its own
        console.stage("loading the model")
        server = make_server(replace(job, deadline=deadline), prepare())
        server.try_run(flower)
        return server
    if runtime.name == "inline":
        grid = InlineGrid(make_app())
        console.stage("loading the model")
        server = make_server(job, prepare())
        stopper.breaks_in = lambda: grid.working
        run_inline(server.app(), grid)
        return server
    console.stage("starting Ray, loading the model")
    with ThreadPoolExecutor(1) as aside:
        prepared = aside.submit(prepare)  # while Ray starts, most of which is waiting
        with contextlib.suppress(
            TimeoutError
        ):  # what is wrong with the configuration is said before Ray is started
            prepared.result(timeout=HEAD_START)
        size = config["clients"]
        verbose = config["verbose"]
        with ray_cluster(runtime, config["device"], size, verbose=verbose) as workers:
            stopper.install()  # Ray puts its own handler for SIGTERM
            job = replace(job, threads=workers.threads, deadline=deadline)
            server = make_server(job, prepared.result(), workers.count)
            workers.run(server.app(), make_app)
    return server
