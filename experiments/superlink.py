"""A SuperLink that asks administrators for a token (docs/deployment.md).

python -m experiments.superlink --admin-token FILE [options of flower-superlink]

Flower's own (1.41) has one port for nodes and administrators, and asks nodes alone for a key:
whoever reaches it may register keys and start runs, that is, run code there and on every node.
Its account authentication is no part of the open package. So this is Flower's SuperLink with
an authentication plugin of ours: who has the token's file is the administrator. Interfaces
that no app of this project uses are closed: a task's token, which Flower puts on a command
line that every user of the machine can read, would be enough to start other apps by them. What
it writes is its owner's alone.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from clients.expiry import VARIABLE, expiring
from experiments.admin_token import read_token
from experiments.command import command
from experiments.superexec import start_superexec


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the SuperLink to its end; returns its exit status: 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.superlink", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--admin-token", type=Path, required=True, help="file with the administrator's token"
    )
    options, flowers = parser.parse_known_args(arguments)
    token = read_token(options.admin_token)
    os.umask(0o077)  # the database and the logs are nobody else's
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--host", default="127.0.0.1")
    own.add_argument("--port", default="8000")
    own.add_argument("--ssl-ca-certfile")
    own.add_argument("--ssl-certfile")
    known, _ = own.parse_known_args(flowers)
    certificates = [
        os.path.abspath(path) for path in (known.ssl_certfile, known.ssl_ca_certfile) if path
    ]
    os.environ[VARIABLE] = os.pathsep.join(certificates)  # for its ServerApps
    threading.Thread(target=_watch_certificates, daemon=True).start()
    address = f"[{known.host}]:{known.port}" if ":" in known.host else f"{known.host}:{known.port}"
    from flwr.supercore.address import (
        resolve_bind_address,
    )  # Flower reads the environment when it is imported

    from experiments.superlink_app import serve

    flowers += start_superexec(resolve_bind_address(address), known.ssl_ca_certfile)
    sys.argv = ["flower-superlink", *flowers]  # which only its own command reads
    serve(token)
    return 0


def _watch_certificates() -> None:
    while True:
        for text in expiring():
            print(f"warning: {text}", file=sys.stderr, flush=True)
        time.sleep(24 * 3600)


if __name__ == "__main__":
    sys.exit(main())
