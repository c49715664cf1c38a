"""One connection to an ASGI app, under a server protocol of choice: the server stops when it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import uvicorn
from uvicorn.server import ServerState

from mesh.clock import sleep


class Line(NamedTuple):
    """Its two ends, and what the server knows of its requests."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: ServerState


@asynccontextmanager
async def connected(app: Any, http: Any) -> AsyncIterator[Line]:
    """`http`: as uvicorn's setting, a name or a protocol class. What is done with it ends within 30 s."""
    config = uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    protocol: Any = config.http_protocol_class
    server = await loop.create_server(lambda: protocol(config, state, {}, loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(30):
            yield Line(reader, writer, state)
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(30):
            while state.connections:
                await sleep(0)
