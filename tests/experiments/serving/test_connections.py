"""Connections that keep others out are closed; those that ask are answered."""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

uvicorn = pytest.importorskip("uvicorn")

from experiments.serving.connections import ANSWERED, OPEN, server_config  # noqa: E402

SECONDS = 0.3
REQUEST = b"GET /%s HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE = 1 << 20
ONE = 32 << 20
CLOSE = REQUEST.replace(b"here", b"here\r\nConnection: close")


async def app(scope, receive, send):
    """Answers at once, after longer than a head may take, or with more than sockets hold."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/one":
        await send({"type": "http.response.body", "body": bytes(ONE)})
        return
    for _ in range(64 if scope["path"] == "/large" else 0):
        await send({"type": "http.response.body", "body": bytes(LARGE), "more_body": True})
    await send({"type": "http.response.body", "body": b"done"})


@contextlib.contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.create_server((host, 0)) as listening:
        server = uvicorn.Server(server_config(app, SECONDS))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as found:
        yield found


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as found:
        yield found


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the other side closes; it fails after a minute if that does not."""
    found = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := connection.recv(LARGE):
            found += part
    return found


def answered(port: int, path: bytes = b"") -> bool:
    with connected(port) as connection:
        connection.sendall(REQUEST % path)
        first = connection.recv(LARGE)
        last = first
        while last and not last.endswith(b"0\r\n\r\n"):
            part = connection.recv(LARGE)
            last = part and last[-8:] + part
        return first.startswith(b"HTTP/1.1 200") and bool(last)


def test_who_sends_nothing_is_closed_and_others_are_answered_then(port):
    with contextlib.ExitStack() as silent:
        many = [silent.enter_context(connected(port)) for _ in range(ANSWERED)]
        assert [until_closed(each) for each in many] == [b""] * ANSWERED
        assert answered(port)


def test_more_connections_than_may_be_open_are_closed_at_once(port):
    with contextlib.ExitStack() as silent:
        many = [silent.enter_context(connected(port)) for _ in range(OPEN + 20)]
        assert [until_closed(each) for each in many] == [b""] * len(many)
        assert answered(port)


def test_as_many_as_may_be_are_answered_and_of_more_nobody():
    with serving() as port, contextlib.ExitStack() as held:
        for number in range(ANSWERED + 1):
            connection = held.enter_context(connected(port))
            connection.sendall(REQUEST % b"")
            status = b"HTTP/1.1 200" if number < ANSWERED else b"HTTP/1.1 503"
            assert connection.recv(LARGE).startswith(status)


def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(port):
    sent = 0
    closed = contextlib.suppress(ConnectionResetError, BrokenPipeError)
    with connected(port) as connection, closed:
        while sent < 6000:  # for a minute
            sent += connection.send(b"G")
            time.sleep(0.01)
    assert sent < 6000


def test_nor_is_the_next_of_a_connection_that_was_answered(port):
    with connected(port) as connection:
        connection.sendall(REQUEST % b"")
        assert connection.recv(LARGE).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /")
        assert b"HTTP" not in until_closed(connection)


def test_a_head_without_end_is_refused(port):
    with connected(port) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * (1 << 17))
        assert b"200" not in until_closed(connection)


def test_who_does_not_take_an_answer_is_closed(port):
    with connected(port) as connection:
        connection.sendall(REQUEST % b"large")
        time.sleep(3 * SECONDS)
        assert len(until_closed(connection)) < 64 * LARGE


@pytest.mark.parametrize("asked", [REQUEST % b"one", CLOSE % b"one", 3 * (REQUEST % b"one")])
def test_nor_is_an_answer_in_one_part_held(port, asked):
    """uvicorn has ended it long before; also where it closes afterwards, or is asked for more."""
    with connected(port) as connection:
        connection.sendall(asked)
        time.sleep(3 * SECONDS)
        assert len(until_closed(connection)) < ONE


def test_an_answer_may_take_longer_than_a_head(port):
    assert answered(port, b"slow") and answered(port, b"large")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this machine")
def test_two_connections_from_one_port_are_two():
    """To two addresses of the server: each has its own time."""
    with serving("0.0.0.0") as port, socket.socket() as one, socket.socket() as other:
        for connection, address in ((one, "127.0.0.1"), (other, "127.0.0.2")):
            connection.settimeout(60)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("127.0.0.1", one.getsockname()[1]))
            connection.connect((address, port))
        one.sendall(REQUEST % b"slow")
        assert one.recv(LARGE).startswith(b"HTTP/1.1 200")
        assert until_closed(other) == b""
