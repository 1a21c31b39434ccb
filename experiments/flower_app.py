"""The ServerApp that Flower starts (``flwr run``): one experiment on the nodes of Flower's own runtime.

    flwr run . --run-config 'overrides="method=promptfl rounds=3"'

The run configuration has the one key ``overrides``: the same words as on the command line of ``experiments.run``.
"""

import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiments.runner import start
from experiments.settings import composed

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Composes the configuration and runs it on the grid."""
    overrides = str(context.run_config.get("overrides", ""))
    start(composed(shlex.split(overrides)), f"flwr run . --run-config 'overrides={overrides!r}'", grid=grid)
