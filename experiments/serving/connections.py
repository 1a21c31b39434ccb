"""Connections that send no whole request, or do not take their answer, are closed in time.

uvicorn ends a connection that is idle after an answer. It waits without end for the head of a
request, and for somebody who does not read: a few such connections would refuse everybody else.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ANSWERED = 128
"""Connections at a time; while there are more, every request is answered with 503."""
OPEN = 2 * ANSWERED
"""Connections at a time; a further one is closed at once."""
SECONDS = 10.0
"""Seconds for the head of a request (from the connection, or from its first byte), and for the
other side to take a part of an answer."""
KEEP_ALIVE = 15
"""Seconds that a connection stays open after an answer."""
GRACE = 10
"""Seconds that requests have to be answered when the server is stopped."""


class _Timer:
    """Aborts a connection some seconds after it was started, unless it is stopped."""

    def __init__(self, transport: asyncio.Transport, seconds: float):
        self._transport, self._seconds = transport, seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(self._seconds, self._transport.abort)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def timed_protocol(seconds: float = SECONDS, most: int = OPEN) -> type[asyncio.Protocol]:
    """Return the protocol of connections with time limits, for uvicorn.

    How long the application takes for an answer is its own matter. h11 bounds the bytes of a head.

    Args:
        seconds: for the head of a request, and to take each part of an answer.
        most: connections at a time; a further one is closed at once.
    """
    opened: set[asyncio.Protocol] = set()

    class Timed(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.head, self.taking = _Timer(transport, seconds), _Timer(transport, seconds)
            self.answering, self.application, self.app = 0, self.app, self.answer
            if len(opened) >= most:
                transport.abort()
                return
            opened.add(self)
            # Writing is paused while anything is left, also of an answer that uvicorn has ended.
            transport.set_write_buffer_limits(high=0)
            self.head.start()

        async def answer(self, scope: dict, receive: Any, send: Any) -> None:
            """Answer a request, whose head is there."""
            self.answering += 1
            self.head.stop()
            try:
                await self.application(scope, receive, send)
            finally:
                self.answering -= 1

        def data_received(self, data: bytes) -> None:
            if not self.answering:
                self.head.start()
            super().data_received(data)

        def pause_writing(self) -> None:
            self.taking.start()
            super().pause_writing()

        def resume_writing(self) -> None:
            self.taking.stop()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            opened.discard(self)
            self.head.stop()
            self.taking.stop()
            super().connection_lost(exc)

    return Timed


def server_config(app: Any, seconds: float = SECONDS) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, with the limits of this module.

    Args:
        app: ASGI.
        seconds: as in :func:`timed_protocol`.
    """
    return uvicorn.Config(
        app,
        http=timed_protocol(seconds),
        ws="none",
        proxy_headers=False,  # nothing here asks for an address
        log_level="warning",
        limit_concurrency=ANSWERED + 1,  # uvicorn refuses from this number on, who asks counted
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
