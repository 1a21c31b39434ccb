"""Answers predictions over HTTP with a client's own prompt.

python -m experiments.serve --run outputs/default/TIME --client 3
python -m experiments.serve --run RUN_DIR --global --host 0.0.0.0 --port 8080
python -m experiments.serve --run RUN_DIR --client 0 --state STATE_DIR     where a deployed client
                                                                           lives
curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
curl -F a=@one.jpg -F b=@two.png http://127.0.0.1:8000/predict
"""

import argparse
import contextlib
import socket
import sys
from collections.abc import Sequence

from experiments.client_model import add_options, from_arguments
from experiments.command import command
from fedpgp.errors import FedPGPError, check_number
from fedpgp.plain_text import written_out

MOST = 10_000
"""Largest limit of a request that may be asked for."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is stopped; return its exit status: 0, or 2 for bad input."""
    options = _parser().parse_args(arguments)
    check_number("--max-mb", options.max_mb, above=0, most=MOST)
    check_number("--max-pictures", options.max_pictures, least=1, most=MOST)
    check_number("--max-megapixels", options.max_megapixels, above=0, most=MOST)
    try:
        import python_multipart  # noqa: F401 (Starlette reads forms by it)
        import uvicorn

        from experiments.serving.app import make_app
        from experiments.serving.connections import server_config
        from experiments.serving.pictures import Limits
    except ImportError as error:
        raise FedPGPError(
            f"experiments.serve needs another package ({error}): pip install 'fedpgp[serve]'"
        ) from error

    limits = Limits(
        bytes=int(options.max_mb * 2**20),
        pictures=options.max_pictures,
        pixels=int(options.max_megapixels * 1e6),
    )
    app = make_app(from_arguments(options), limits)
    listening = _listening(options.host, options.port)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"answering on http://{shown}:{port} (POST /predict); Ctrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has stopped
        uvicorn.Server(server_config(app)).run([listening])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        FedPGPError: it cannot be had, for example since another process has it.
    """
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=kind)
    except (OSError, OverflowError) as error:
        raise FedPGPError(
            f"--host {written_out(host)} --port {port} cannot be listened on ({error}); choose "
            "others, or end what has them"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.serve", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine)")
    add("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    add("--max-mb", type=float, default=16, help="of a request's body (%(default)s)")
    add("--max-pictures", type=int, default=32, help="of a request (%(default)s)")
    add("--max-megapixels", type=float, default=50, help="of a picture (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
