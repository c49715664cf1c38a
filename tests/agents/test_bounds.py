"""What a rude or endless peer may hold of an agent that `mesh.serve` runs: as little as of a gateway (P217).

One real process with a short bound on slow requests serves the whole file.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mesh.clock import monotonic_s, sleep

ROOT = Path(__file__).parents[2]
SLOW_S = 1.5
AGENT = f"""
import mesh, mesh.edge.protocol as edge
edge.REQUEST_S_MAX, edge.SWEEP_S = {SLOW_S}, 0.1

async def size(value: str) -> int:
    return len(value)

agent = mesh.Agent("words", [size], register=False, input_bytes_max=200_000, url="http://127.0.0.1:9")
begin = agent.begin
from mesh.agent import server
bind = server.bind

def told(host, port):
    listener = bind(host, port)
    print(listener.getsockname()[1], flush=True)
    return listener

server.bind = told
agent.run()
"""
HEAD = b"POST /words/size HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
GOOD = HEAD + b"content-length: 4\r\n\r\n" + b'"ab"'


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", AGENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        assert process.wait(15) == -15
        process.stdout.close()


class Line:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(OSError):
            await self.writer.drain()

    async def status(self, within_s: float = 30.0) -> int:
        """Of the next answer, whose body is read too; 0 when the connection ends without one."""
        async with asyncio.timeout(within_s):
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            except (asyncio.IncompleteReadError, OSError):
                return 0
            await self.reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            return int(head.split(b" ")[1])

    async def ends(self, within_s: float = 30.0) -> bool:
        """The agent has dropped the connection."""
        async with asyncio.timeout(within_s):
            with suppress(OSError):
                while await self.reader.read(1 << 16):
                    pass
        return True


@asynccontextmanager
async def line(port: int) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture(autouse=True)
async def well(port: int) -> AsyncIterator[None]:
    """Whatever a test did, the next caller is served."""
    yield
    async with line(port) as good:
        await good.send(GOOD)
        assert await good.status() == 200


async def test_headers_without_end(port: int) -> None:
    async with line(port) as rude:
        await rude.send(HEAD + b"x: " + b"y" * 70_000)
        assert await rude.status() == 431
        assert await rude.ends()


async def test_many_headers(port: int) -> None:
    async with line(port) as rude:
        await rude.send(HEAD + b"x: y\r\n" * 201 + b"content-length: 0\r\n\r\n")
        assert await rude.status() == 400


async def test_large_headers(port: int) -> None:
    async with line(port) as rude:
        await rude.send(HEAD + b"x: " + b"y" * 40_000 + b"\r\ncontent-length: 0\r\n\r\n")
        assert await rude.status() == 400


async def test_trailers_without_end(port: int) -> None:
    """Not by the bound on slow requests: by their number."""
    began_s = monotonic_s()
    async with line(port) as rude:
        await rude.send(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n")
        for _ in range(100):
            await rude.send(b"x: y\r\n" * 10)
            await sleep(0)
        assert await rude.ends()
    assert monotonic_s() - began_s < SLOW_S - 0.3


@pytest.mark.parametrize("sent", [b"0\r\nx: ", b"2;x="], ids=["a trailer", "a chunk's extension"])
async def test_a_line_without_end_after_the_head(port: int, sent: bytes) -> None:
    """Not by the bound on slow requests: by its size. The parser keeps and copies what it has of it."""
    began_s = monotonic_s()
    async with line(port) as rude:
        await rude.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + sent)
        ended = asyncio.ensure_future(rude.ends())
        while not ended.done() and monotonic_s() - began_s < SLOW_S:
            await rude.send(b"y" * 30_000)
            await sleep(0.001)
        assert await ended
    assert monotonic_s() - began_s < SLOW_S - 0.3


@pytest.mark.parametrize(
    "framed", [b"content-length: %d\r\n\r\n%b", b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("pause_s", [0.0, 0.1])
async def test_another_protocol_is_asked_for(port: int, framed: bytes, pause_s: float) -> None:
    """It is not spoken here: the request is answered with its body, which is no request, however late it comes."""
    hidden = b'"' + GOOD.replace(b'"', b"'").replace(b"\r\n", b" ") + b'"'
    asked = HEAD + b"connection: upgrade\r\nupgrade: h2c\r\n"
    head, _, rest = (asked + framed % (len(hidden), hidden)).partition(b"\r\n\r\n")
    async with line(port) as java:
        for _ in range(3):
            await java.send(head + b"\r\n\r\n")
            await sleep(pause_s)
            await java.send(rest + GOOD)
            assert [await java.status(), await java.status()] == [200, 200]
        await java.send(asked + b"content-length: %d\r\n\r\n" % len(GOOD))
        await sleep(0.1)
        await java.send(GOOD)
        assert await java.status() == 400  # one request, whose body is no JSON
        await java.send(GOOD)
        assert await java.status() == 200


async def test_a_body_that_is_announced_too_large(port: int) -> None:
    async with line(port) as rude:
        await rude.send(HEAD + b"content-length: 200001\r\n\r\n")
        assert await rude.status() == 400


async def test_a_body_without_end(port: int) -> None:
    async with line(port) as rude:
        await rude.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 4)
        assert await rude.status() == 400


@pytest.mark.parametrize("sent", [b"", b"POST /words/size HT", HEAD + b"content-length: 9\r\n\r\n12"])
async def test_a_request_that_does_not_end(port: int, sent: bytes) -> None:
    began_s = monotonic_s()
    async with line(port) as slow:
        await slow.send(sent)
        assert await slow.ends()
    assert SLOW_S - 0.1 < monotonic_s() - began_s < SLOW_S + 3


async def test_a_drop_at_a_time(port: int) -> None:
    """Bytes that come now and then do not make it longer."""
    async with line(port) as slow:
        await slow.send(HEAD + b"content-length: 999\r\n\r\n")
        ended = asyncio.ensure_future(slow.ends())
        while not ended.done():
            await slow.send(b"x")
            await sleep(0.05)
        assert await ended


async def test_more_requests_in_advance_than_anybody_needs(port: int) -> None:
    async with line(port) as rude:
        await rude.send(GOOD * 300)
        assert await rude.ends()
