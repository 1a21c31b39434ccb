"""Tells Prometheus how a node, or a run, is doing: GET http://127.0.0.1:9101/metrics.

python -m experiments.metrics --state STATE_DIR              beside a node of a deployment
python -m experiments.metrics --run RUN_DIR --port 9100      of a run's folder; a run tells its own
                                                             with runtime.metrics_port
"""

import argparse
import sys
import time
from collections.abc import Sequence

from experiments.command import command
from experiments.monitoring.folders import NodeMetrics, RunMetrics
from experiments.monitoring.server import MetricsServer
from experiments.overrides import user_path
from experiments.run_folder import RunFolder, asked_run
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import written_out


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Answer until it is stopped; return the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.metrics", description=__doc__.splitlines()[0]
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--state", type=user_path, metavar="DIR", help="state-dir of a node")
    of.add_argument("--run", type=user_path, metavar="DIR", help="a run's folder")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9101, help="(%(default)s)")
    options = parser.parse_args(arguments)
    if options.state:
        if not options.state.is_dir():
            raise FedPGPError(f"--state {written_out(options.state)} is no folder")
        found = NodeMetrics(options.state)
    else:
        folder, config = RunFolder.open(asked_run(options.run))
        found = RunMetrics(folder.path, config["rounds"])
    server = MetricsServer(options.host, options.port, found)
    print(f"metrics on http://{options.host}:{server.port}/metrics; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
