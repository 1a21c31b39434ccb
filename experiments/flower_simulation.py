"""``flwr run .`` without the name of a SuperLink: Flower's own starts the ServerApp, and a
simulation runs.

The simulation is ``experiments.run`` in a process of its own: Flower starts a Ray for its own nodes
in the process of the ServerApp, a process has one Ray, and that one asks nobody for a token.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from flwr.supercore.exit import add_exit_handler

from experiments.overrides import RUN
from experiments.runtimes.local_processes import end_with_starter
from fedpgp.errors import FedPGPError


class Failed(FedPGPError):
    """The run failed, and has said why."""


STOP_SECONDS = 60
"""Seconds that a run which is stopped has to finish its round and save."""


def simulate(overrides: Sequence[str]) -> None:
    """Run the experiment to its end and print what it prints.

    It works in the folder where Flower's SuperLink was started. ``flwr stop`` stops it as Ctrl-C
    does: it saves, and can be resumed.

    Args:
        overrides: as for ``experiments.run``.

    Raises:
        Failed: the run failed, and has said why.
        FedPGPError: there is no folder to work in.
    """
    try:
        folder = os.getcwd()
    except OSError as error:
        raise FedPGPError(
            "the folder in which Flower's local SuperLink was started is gone: end the process "
            "`flower-superlink --simulation`, and start `flwr run .` again"
        ) from error
    print(f"in {folder}: {shlex.join([*RUN.split(), *overrides])}", flush=True)
    # Flower has put the code that was sent, and perhaps an environment, in front of the path.
    path = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "experiments.run", *overrides],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=end_with_starter,
    )

    def stop() -> None:
        process.terminate()
        process.wait(STOP_SECONDS)

    add_exit_handler(stop, run_before_force_exit=True)
    for line in process.stdout:
        print(
            line, end="", flush=True
        )  # into the run's log, by way of Flower's hold on standard output
    status = process.wait()
    if status and status not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Failed(f"the run ended with exit status {status}")
