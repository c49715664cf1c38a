"""The socket side of HTTP in: uvicorn's protocol with one write per answer, and bounds on what a slow peer may hold.

uvicorn writes head and body of an answer separately and waits for a request as long as it takes. Knows no route.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers, before they are parsed; the settings' own limit answers politely below it."""
REQUEST_S_MAX: Final = 30.0
"""From the first byte of a request to its last."""
SWEEP_S: Final = 1.0

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _Corked:
    """A transport that collects what is written in one turn of the event loop and writes it at once."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._chunks: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, data: bytes) -> None:
        if not self._chunks:
            self._call_soon(self._flush)
        self._chunks.append(data)

    def _flush(self) -> None:
        if self._chunks:
            self._transport.write(b"".join(self._chunks))
            self._chunks.clear()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Edge(HttpToolsProtocol):
    """One connection of a caller or an agent."""

    reading_since_s = 0.0
    """Loop time of the first byte of a request that is not complete; 0 between requests."""
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Corked(transport)))
        self.reading_since_s = self.loop.time()

    def data_received(self, data: bytes) -> None:
        if self._head_bytes >= 0:
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
        super().on_headers_complete()

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
