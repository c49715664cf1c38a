"""Scripted raw servers, and what the tests of the pool share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from mesh.clock import monotonic_s, sleep
from mesh.pool import Pool, Reply, Target

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TIMEOUT_S = 20.0


@dataclass
class Line:
    """The peer's end of one connection; `number` counts connections from 1."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """The next request, head and body; EOFError when the client is gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def closed_by_client(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[[Line], Awaitable[None]]


@dataclass
class Peer:
    """A raw server. What the script leaves open is closed when it returns."""

    script: Script
    connections: int = 0
    lines: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = field(default_factory=dict)
    server: asyncio.Server | None = None
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.lines[writer] = asyncio.current_task()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self.script(Line(reader, writer, self.connections))
        del self.lines[writer]
        writer.close()

    @property
    def target(self) -> Target:
        return Target.parse(f"http://127.0.0.1:{self.port}/base")

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            for writer, task in tuple(self.lines.items()):
                writer.transport.abort()
                assert task is not None
                task.cancel()
                await asyncio.wait([task])
            await self.server.wait_closed()


@contextlib.asynccontextmanager
async def peer(
    script: Script, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    served = Peer(script)
    served.server = await asyncio.start_server(served.serve, host, port, ssl=tls, limit=1 << 24)
    served.port = served.server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        await served.stop()


@contextlib.asynccontextmanager
async def pool_of(**options: object) -> AsyncIterator[Pool]:
    """A pool that must end with nothing left over."""
    pool = Pool(**options)  # pyright: ignore[reportArgumentType]
    try:
        yield pool
    finally:
        await pool.close()
    assert pool.stats() == {"open": 0, "idle": 0, "waiting": 0}


async def until(condition: Callable[[], bool]) -> None:
    limit_s = monotonic_s() + TIMEOUT_S
    while not condition():
        assert monotonic_s() < limit_s, "waited in vain"
        await sleep(0.005)


async def send(pool: Pool, target: Target, body: bytes = b"{}", timeout_s: float = TIMEOUT_S) -> Reply:
    return await pool.post(target, target.under(b"/s/o"), [], body, timeout_s=timeout_s)


def answering(*replies: bytes) -> Script:
    """Answer each request of a connection with the next reply (the last one again and again)."""

    async def script(line: Line) -> None:
        for turn in range(1000):
            await line.request()
            line.send(replies[min(turn, len(replies) - 1)])

    return script


def answering_then_closing(reply: bytes, *, piecewise: bool = False) -> Script:
    async def script(line: Line) -> None:
        await line.request()
        if piecewise:
            for position in range(len(reply)):
                line.send(reply[position : position + 1])
                await line.writer.drain()
                await sleep(0)
        else:
            line.send(reply)

    return script


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The same test once per event loop: agents run on either, the gateway on uvloop.

    A decorator, since pytest-asyncio switches loops for a whole session only. What the loop could only report to its
    exception handler fails the test too.
    """

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    @functools.wraps(test)
    def run(*, new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        unhandled: list[dict[str, object]] = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            runner.run(test(**arguments))
        assert not unhandled

    given = inspect.signature(test)
    extra = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = given.replace(parameters=[*given.parameters.values(), extra])  # pyright: ignore[reportAttributeAccessIssue]
    return run
