"""Connections that send no whole request, or do not take their answer, are closed in time.

uvicorn ends a connection that is idle after an answer. It waits without end for the head of a
request, and for somebody who does not read: a few such connections would refuse everybody else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ANSWERED = 128
"""Connections at a time; a request on a further one is answered with 503."""
OPEN = 2 * ANSWERED
"""Connections at a time; a further one is closed at once."""
SECONDS = 10.0
"""Seconds for the head of a request (from the connection, or from its first byte), and for the
other side to take a part of an answer."""
KEEP_ALIVE = 15
"""Seconds that a connection stays open after an answer."""
GRACE = 10
"""Seconds that requests have to be answered when the server is stopped."""


@dataclass
class _Connection:
    """One connection: closed when its timer ends, which does not run while it is ``answering``."""

    transport: asyncio.Transport
    seconds: float
    timer: asyncio.TimerHandle | None = None
    answering: bool = False

    def start(self) -> None:
        if self.timer is None:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(self.seconds, self.transport.abort)

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Connections:
    """An application whose connections have time limits.

    Args:
        app: ASGI; how long it takes for an answer is its own matter.
        seconds: for the head of a request, and to take each part of an answer.
        most: connections at a time; a further one is closed at once.
    """

    def __init__(self, app: Any, seconds: float = SECONDS, most: int = OPEN):
        self._app, self._seconds, self._most = app, seconds, most
        self._open: dict[tuple, _Connection] = {}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Answer a request, whose head is there."""
        connection = self._open.get(tuple(scope.get("client") or ()))
        if connection is None:
            await self._app(scope, receive, send)
            return

        async def timed(message: dict) -> None:
            connection.start()
            await send(message)
            connection.stop()

        connection.answering = True
        connection.stop()
        try:
            await self._app(scope, receive, timed)
        finally:
            connection.answering = False
            connection.stop()

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol of these connections, for uvicorn. h11 bounds the bytes of a head."""
        owner = self

        class Timed(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                self.peer = _peer(transport)  # nobody knows it any more when it is closed
                owner._opened(self.peer, transport)

            def data_received(self, data: bytes) -> None:
                owner._heard(self.peer)
                super().data_received(data)

            def connection_lost(self, exc: Exception | None) -> None:
                owner._closed(self.peer, self.transport)
                super().connection_lost(exc)

        return Timed

    def _opened(self, peer: tuple, transport: asyncio.Transport) -> None:
        if len(self._open) >= self._most:
            transport.abort()
            return
        connection = self._open[peer] = _Connection(transport, self._seconds)
        connection.start()

    def _heard(self, peer: tuple) -> None:
        connection = self._open.get(peer)
        if connection is not None and not connection.answering:
            connection.start()

    def _closed(self, peer: tuple, transport: asyncio.Transport) -> None:
        connection = self._open.get(peer)
        if connection is not None and connection.transport is transport:
            connection.stop()
            del self._open[peer]


def _peer(transport: asyncio.Transport) -> tuple:
    return tuple((transport.get_extra_info("peername") or ())[:2])


def server_config(app: Any, seconds: float = SECONDS) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, with the limits of this module.

    Args:
        app: ASGI.
        seconds: as in :class:`Connections`.
    """
    connections = Connections(app, seconds)
    return uvicorn.Config(
        connections,
        http=connections.protocol(),
        ws="none",
        proxy_headers=False,  # they would change the address that a connection is known by
        log_level="warning",
        limit_concurrency=ANSWERED,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
