"""A SuperNode that shares its messages with no other local process (docs/deployment.md).

python -m experiments.supernode [options of flower-supernode]

Flower's own SuperNode hands its messages to whatever local process asks for them, and takes its
answers. Here only the process that is started with it is given any; what the node writes is its
owner's alone; and a configuration that cannot work is told in a line.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from clients.expiry import VARIABLE, expiring
from clients.node_config import NodeConfig
from experiments.command import command
from experiments.superexec import flower, make_secret, readable_once, start_superexec


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Become Flower's SuperNode; return 2 for a configuration that cannot work."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m experiments.supernode", add_help=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="9094")
    parser.add_argument("--ssl-ca-certfile")
    parser.add_argument("--root-certificates")
    parser.add_argument("--node-config", default="")
    options, _ = parser.parse_known_args(arguments)
    os.umask(0o077)
    if not {"-h", "--help", "-V", "--version"} & set(arguments):
        NodeConfig.of_text(options.node_config)
        if options.root_certificates:
            os.environ[VARIABLE] = os.path.abspath(options.root_certificates)
        for text in expiring():
            print(f"warning: {text}", file=sys.stderr, flush=True)
        secret = make_secret()
        start_superexec(f"{options.host}:{options.port}", options.ssl_ca_certfile, secret)
        arguments += ["--isolation", "process"]
        arguments += ["--superexec-auth-secret-file", readable_once(secret)]
    command = [flower("flower-supernode"), *arguments]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
