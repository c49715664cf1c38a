"""A listener that ends with all that it accepted: each connection has a task, none of them outlives `close`.

`asyncio.start_server` alone leaves open what it was accepting as it closed, and a task that is canceled before its
first step closes nothing. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mesh.clock import sleep

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine
    from typing import Any

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
    """Serves one connection, which is closed when it returns."""

_log = logging.getLogger(__name__)

TURNS: Final = 5
"""Turns of the event loop from an accepted socket to `_accept`, and from the end of a transport to its close."""


class Accepting:
    """`host`, `port`: where it listens, once it is open."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._lines: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.host = ""
        self.port = 0

    async def open(
        self, host: str = "127.0.0.1", port: int = 0, *, limit: int = 1 << 16, tls: ssl.SSLContext | None = None
    ) -> None:
        """Listen. Raises OSError."""
        server = await asyncio.start_server(self._accept, host, port, limit=limit, ssl=tls)
        self.host, self.port = server.sockets[0].getsockname()[:2]
        self._server = server

    async def open_unix(self, path: str) -> None:
        """Listen on a unix socket. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._accept, path)

    async def close(self) -> None:
        """Stop listening and cut all connections; may be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if self._lines:
            for task, writer in self._lines.items():
                writer.transport.abort()
                task.cancel()
            await asyncio.wait(self._lines)
        for _ in range(TURNS):
            await sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._lines[task] = writer
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._lines.pop(task).close()
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("a connection was served badly", exc_info=fault)
