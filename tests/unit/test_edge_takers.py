"""A peer that asks and takes no answer: what it may have waiting for it is bounded, and so is for how long."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import uvicorn
from uvicorn.server import ServerState

from gateway.http import Front
from mesh.clock import sleep
from mesh.edge import Answer, HotRoute, Request, Routes
from mesh.edge.protocol import PIPELINE_MAX, Edge, sweep
from mesh.edge.turn import TAKE_S_MAX

REQUESTS = 60
BODY = b"x" * 100_000
HUGE = b"x" * (16 << 20)
"""More than a kernel holds for a connection."""
ASK = b"GET /x?%d HTTP/1.1\r\nhost: x\r\n\r\n"
NOW = b"GET /now HTTP/1.1\r\nhost: x\r\n\r\n"
ORDINARY = b"GET /ordinary HTTP/1.1\r\nhost: x\r\n\r\n"


class Served(NamedTuple):
    connections: set[Any]
    asked: list[bytes]
    peer: socket.socket


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


@asynccontextmanager
async def served(body: bytes) -> AsyncIterator[Served]:
    """A server whose hot route answers `body`, others little, and a peer with little room for what it is sent."""
    asked: list[bytes] = []

    async def large(request: Request) -> Answer:
        asked.append(request.query)
        return Answer(200, [], body)

    def at_once(request: Request) -> None:
        asked.append(b"%d" % _depth())
        request.sink.answer(Answer(200, [], b"now"))

    found = {b"/x": HotRoute(large, _render), b"/now": HotRoute(large, _render, begin=at_once)}
    routes = Routes(lambda _method, path: found.get(path), 1_000, 1_000)
    front = Front(_app, routes)
    config = uvicorn.Config(front, http=Edge, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Edge(config, state, {}, loop), "127.0.0.1", 0)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    peer.setblocking(False)
    try:
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        yield Served(state.connections, asked, peer)
    finally:
        peer.close()
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(10):
            while state.connections:
                await sleep(0)


def _depth() -> int:
    """How many calls deep this one is."""
    depth, frame = 0, inspect.currentframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def _render(error: Exception) -> Answer:
    raise error


async def settled(stage: Served) -> int:
    """How many were answered, once no more are."""
    seen, quiet = -1, 0
    async with asyncio.timeout(30):
        while quiet < 20:
            await sleep(0.005)
            quiet = quiet + 1 if len(stage.asked) == seen else 0
            seen = len(stage.asked)
    return seen


async def test_it_is_asked_no_more_than_it_takes() -> None:
    """P2: the kernel's buffers and one answer; whoever reads on in the end gets all of them, in order."""
    loop = asyncio.get_running_loop()
    async with served(BODY) as stage:
        await loop.sock_sendall(stage.peer, b"".join([ASK % n for n in range(REQUESTS)]) + ORDINARY)
        answered = await settled(stage)
        assert 0 < answered < REQUESTS
        (edge,) = stage.connections
        assert edge.transport.get_write_buffer_size() < 2 * len(BODY)
        left = bytearray()
        async with asyncio.timeout(30):
            while not left.endswith(b"\r\n\r\ndone"):
                left += await loop.sock_recv(stage.peer, 1 << 20)
        assert left.count(b"HTTP/1.1 200 OK") == REQUESTS + 1
        assert stage.asked == [b"%d" % n for n in range(REQUESTS)]


async def test_an_answer_at_once_begins_the_next_in_a_turn_of_its_own() -> None:
    """As many as may wait on a connection do not stand on each other's shoulders: Python has a limit for that."""
    loop = asyncio.get_running_loop()
    async with served(b"first") as stage:
        await loop.sock_sendall(stage.peer, ASK % 1 + NOW * (PIPELINE_MAX - 1) + ORDINARY)
        got = bytearray()
        async with asyncio.timeout(30):
            while not got.endswith(b"\r\n\r\ndone"):
                got += await loop.sock_recv(stage.peer, 1 << 20)
        assert got.count(b"\r\n\r\nnow") == PIPELINE_MAX - 1
        depths = [int(one) for one in stage.asked[1:]]
        assert max(depths) < min(depths) + PIPELINE_MAX


async def test_what_takes_nothing_is_dropped() -> None:
    """P2: also a connection that is closing, whose last bytes nobody takes."""
    loop = asyncio.get_running_loop()
    async with served(HUGE) as stage:
        await loop.sock_sendall(stage.peer, ASK % 1 + ASK % 2)
        await settled(stage)
        (edge,) = stage.connections
        assert sweep(stage.connections, loop.time() - TAKE_S_MAX + 1) == 0
        # Of who takes a little, the time begins anew.
        unsent = edge.transport.get_write_buffer_size()
        async with asyncio.timeout(30):
            while edge.transport.get_write_buffer_size() >= unsent:
                await loop.sock_recv(stage.peer, 4_096)
        assert sweep(stage.connections, loop.time() + 2) == 0
        edge.transport.close()
        assert sweep(stage.connections, loop.time() + 3) == 0
        assert sweep(stage.connections.copy(), loop.time() + 2 * TAKE_S_MAX) == 1
        async with asyncio.timeout(10):
            while stage.connections:
                await sleep(0)
        assert stage.asked == [b"1"]
