"""The socket side of HTTP in: uvicorn's protocol with bounds on what a slow or endless peer may hold.

uvicorn by itself waits for a request as long as it takes and reads headers of any size. Knows no route.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers, before they are parsed; the settings' own limit answers politely below it."""
PIPELINE_MAX: Final = 64
"""Requests that wait on one connection behind the one being answered."""
TRAILERS_MAX: Final = 64
REQUEST_S_MAX: Final = 30.0
"""From the first byte of a request to its last."""
SWEEP_S: Final = 1.0

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Edge(HttpToolsProtocol):
    """One connection of a caller or an agent."""

    reading_since_s = 0.0
    """Loop time of the first byte of a request that is not complete; 0 between requests."""
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.reading_since_s = self.loop.time()

    def data_received(self, data: bytes) -> None:
        if self._head_bytes < 0:
            if len(self.headers) > TRAILERS_MAX:
                self.abort()
                return
        else:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self._head_ends_within(data):
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def _head_ends_within(self, data: bytes) -> bool:
        # A body may follow its head in one read; only what comes before the empty line counts.
        return self._head_bytes - len(data) + data.find(b"\r\n\r\n") + 1 <= HEAD_BYTES_MAX and b"\r\n\r\n" in data

    def on_message_begin(self) -> None:
        self.reading_since_s = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = -1
        if len(self.pipeline) >= PIPELINE_MAX:
            self.abort()
            return
        super().on_headers_complete()
        # The request has its own list by now; what comes after the body is no header of it, credentials least of all.
        self.headers = []

    def on_message_complete(self) -> None:
        self.reading_since_s = 0.0
        self._head_bytes = 0
        super().on_message_complete()

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abort()


def sweep(connections: Iterable[Any], now_s: float) -> int:
    """Drop connections that have been sending one request for too long; how many."""
    late = [
        one
        for one in connections
        if isinstance(one, Edge) and one.reading_since_s and now_s - one.reading_since_s > REQUEST_S_MAX
    ]
    for one in late:
        one.abort()
    return len(late)
