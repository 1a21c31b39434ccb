"""The address that Prometheus asks."""

import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from experiments.monitoring.exposition import CONTENT_TYPE, Metric, exposition
from fedpgp.errors import FedPGPError

PATHS = ("/metrics", "/")


class MetricsServer:
    """Answers ``GET /metrics`` in a thread of its own, until it is closed.

    Args:
        host, port: to listen on; port 0 is any that is free.
        metrics: looked up at each request.

    Attributes:
        port: that it listens on.

    Raises:
        FedPGPError: the port cannot be had.
    """

    def __init__(self, host: str, port: int, metrics: Callable[[], Iterable[Metric]]):
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:  # noqa: N802 (its name is the library's)
                if self.path.partition("?")[0] not in PATHS:
                    self.send_error(404)
                    return
                body = exposition(metrics()).encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing of requests."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise FedPGPError(
                f"metrics cannot be told on {host}:{port} ({error}); choose another port"
            ) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
