"""A fault of our own is told on its connection, which goes on: under our own protocol and any other ASGI server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from gateway.http import Front
from gateway.problems import install, problem
from mesh.edge import Answer, HotRoute, Request, Routes
from mesh.edge.protocol import Edge
from tests.unit.asgi_line import connected


def _app() -> FastAPI:
    app = FastAPI()
    install(app)

    @app.post("/ordinary")
    async def fail() -> None:
        raise RuntimeError("SECRET")

    @app.post("/begun")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one piece"
            raise RuntimeError("SECRET")

        return StreamingResponse(pieces())

    return app


async def _hot(_request: Request) -> Answer:
    raise RuntimeError("SECRET")


def _front() -> Front:
    route = HotRoute(_hot, problem)
    return Front(_app(), Routes(lambda _method, path: route if path == b"/hot" else None, 100_000, 100_000))


@pytest.mark.parametrize("http", [Edge, "httptools"], ids=["edge", "asgi"])
async def test_the_next_request_on_the_connection_of_a_500_is_answered(http: Any) -> None:
    """RFC 9112, 9.6: who closes says so in the answer; without `Connection: close` a caller sends its next request."""
    async with connected(_front(), http) as (reader, writer, _):
        for path in (b"/ordinary", b"/ordinary", b"/hot", b"/ordinary"):
            writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nxyz" % path)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 500 ")
            assert b"connection: close" not in head.lower()
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(size)
            assert b'"internal"' in body
            assert b"SECRET" not in body


async def test_an_answer_that_breaks_off_is_cut() -> None:
    """Nobody is to take what came so far for all of it."""
    async with connected(_front(), Edge) as (reader, writer, _):
        writer.write(b"POST /begun HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        whole = await reader.read()
        assert b"one piece" in whole
        assert not whole.endswith(b"0\r\n\r\n")
