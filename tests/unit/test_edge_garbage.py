"""What a request leaves behind on a connection that stays: nothing for the garbage collector."""

from __future__ import annotations

import asyncio
import gc

import uvicorn
from uvicorn.server import ServerState

from gateway.http import Front
from mesh.clock import sleep
from mesh.edge import Answer, HotRoute, Request, Routes
from mesh.edge.protocol import Edge

REQUESTS = 20


async def _echo(request: Request) -> Answer:
    return Answer(200, [], request.body)


def _render(error: Exception) -> Answer:
    raise error


async def test_an_answered_request_is_gone_without_the_collector() -> None:
    """A cycle per request cost the gateway 10 us of 110, for collecting it and for the cold memory of the next ones."""
    route = HotRoute(_echo, _render)
    front = Front(None, Routes(lambda _method, _path: route, 1_000, 1_000))
    config = uvicorn.Config(front, http=Edge, ws="none", lifespan="off", log_config=None, access_log=False)
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Edge(config, state, {}, loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    gc.collect()
    gc.disable()
    try:
        for _ in range(REQUESTS):
            writer.write(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
            assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert state.total_requests == REQUESTS
        assert not [one for one in gc.get_objects() if type(one) is Request]
    finally:
        gc.enable()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(10):
            while state.connections:
                await sleep(0)
