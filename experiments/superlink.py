"""A SuperLink that asks administrators for a token (docs/deployment.md).

python -m experiments.superlink --admin-token FILE [options; --help]

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
from experiments.superexec import make_secret, start_superexec


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the SuperLink to its end; return its exit status: 2 for bad input."""
    options = _parser().parse_args(arguments)
    token = read_token(options.admin_token)
    os.umask(0o077)  # the database and the logs are nobody else's
    certificates = [
        os.path.abspath(path) for path in (options.ssl_certfile, options.ssl_ca_certfile) if path
    ]
    os.environ[VARIABLE] = os.pathsep.join(certificates)  # for its ServerApps
    secret = make_secret()
    # Flower reads the environment when it is imported.
    from flwr.supercore.address import resolve_bind_address

    from experiments.superlink_app import configuration, serve

    config = configuration(options, token, secret)
    threading.Thread(target=_watch_certificates, daemon=True).start()
    host = f"[{options.host}]" if ":" in options.host else options.host
    start_superexec(resolve_bind_address(f"{host}:{options.port}"), config.ssl_ca_certfile, secret)
    serve(config)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.superlink", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--admin-token", type=Path, required=True, help="file with the administrator's token")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (%(default)s)")
    add("--port", type=int, default=8000, help="(%(default)s)")
    add("--ssl-certfile", help="the server's certificate")
    add("--ssl-keyfile", help="its key")
    add("--ssl-ca-certfile", help="the certificate of the authority that signed it")
    add("--insecure", action="store_true", help="no TLS: for a test on this machine alone")
    add("--enable-supernode-auth", action="store_true", help="take registered nodes alone")
    add("--database", default=":flwr-in-memory:", help="file that keeps nodes' keys and runs")
    add("--health-server-address", help="HOST:PORT of a second port for monitoring")
    add(
        "--disable-runtime-dependency-installation",
        action="store_true",
        help="as in Flower; here nothing is ever installed",
    )
    return parser


def _watch_certificates() -> None:
    while True:
        for text in expiring():
            print(f"warning: {text}", file=sys.stderr, flush=True)
        time.sleep(24 * 3600)


if __name__ == "__main__":
    sys.exit(main())
