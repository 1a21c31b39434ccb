"""The ServerApp that Flower starts (``flwr run``): one experiment on the nodes of a
deployment, or a simulation.

    flwr run . --stream                                     # a simulation on this machine
    flwr run . SUPERLINK --run-config 'overrides="rounds=3 clients=5"'    # docs/deployment.md

The run configuration has the key ``overrides``: the same words as on the command line of
``experiments.run``; ``resume=RUN_DIR`` resumes a run, on the machine that has its folder.
``command`` is what a person typed where another command started Flower
(``experiments.deploy local``); it is kept in the run's folder.
"""

import shlex
import traceback
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from clients.expiry import expiring
from clients.watchdog import end_with_parent
from experiments.flower_simulation import Failed, simulate
from experiments.override_checks import check_overrides
from experiments.overrides import FOLDERS, flower_command, readable
from experiments.quiet import quiet
from experiments.run import changes_on_resume
from experiments.runner import resume, start
from experiments.settings import composed
from experiments.stopping import Stopped
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import indented
from strategies.concurrent_grid import ConcurrentGrid

DEPLOYED = "runtime=flower"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the grid. What goes wrong is told in the run's log (``flwr log``)."""
    end_with_parent()
    quiet(verbose=False)  # of Flower's own account of an error, which is a traceback
    words = str(context.run_config.get("overrides", ""))
    try:
        if isinstance(grid, InMemoryGrid):
            simulate(_split(words))
            return
        for text in expiring():
            print(f"warning: {text}", flush=True)
        _run(ConcurrentGrid(grid), _split(words), str(context.run_config.get("command", "")))
    except Stopped:  # saved, and said so
        return
    except Failed:
        raise
    except FedPGPError as error:
        print(f"error: {indented(error)}", flush=True)
        raise  # the run has failed, for Flower too
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {indented(error)}", flush=True)
        raise


def _split(words: str) -> list[str]:
    try:
        return readable(shlex.split(words))
    except ValueError as error:
        raise FedPGPError(
            f"overrides of the run configuration cannot be read ({error}): {words}"
        ) from error


def _run(grid: Grid, asked: list[str], command: str) -> None:
    # The runtime is given here, and not chosen by anybody: a run that is resumed keeps
    # its own settings of it.
    chosen = [override for override in asked if override != DEPLOYED]
    overrides = [DEPLOYED, *chosen]
    check_overrides(overrides)
    config = composed(overrides)
    if config["resume"]:
        folder = Path(config["resume"])
        kept = [override for override in chosen if not override.startswith("resume=")]
        resume(folder, changes_on_resume(config, kept, folder), grid=grid)
    else:
        kept = [override for override in chosen if override.partition("=")[0] not in FOLDERS]
        start(config, command or flower_command(kept), grid=grid)
