"""A SuperNode that shares its messages with no other local process (docs/deployment.md).

python -m experiments.supernode [options of flower-supernode]

Flower's own SuperNode hands its messages to whatever local process asks for them, and takes its answers. Here only the
process that is started with it is given any; and what the node writes is its owner's alone.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from experiments.superexec import flower, start_superexec


def main(arguments: Sequence[str] | None = None) -> int:
    """Becomes Flower's SuperNode."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m experiments.supernode", add_help=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="9094")
    parser.add_argument("--ssl-ca-certfile")
    options, _ = parser.parse_known_args(arguments)
    os.umask(0o077)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if not {"-h", "--help", "-V", "--version"} & set(arguments):
        arguments += start_superexec(f"{options.host}:{options.port}", options.ssl_ca_certfile)
    command = [flower("flower-supernode"), *arguments]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
