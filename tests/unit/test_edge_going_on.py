"""A route function that answers and goes on: under our own protocol and under any other ASGI server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.http import Front
from mesh.clock import sleep
from mesh.edge import Answer, HotRoute, Request, Routes
from mesh.edge.protocol import Edge
from tests.unit.asgi_line import connected


def _render(error: Exception) -> Answer:
    raise error


@pytest.mark.parametrize("http", [Edge, "httptools"], ids=["edge", "asgi"])
async def test_the_connection_is_free_and_the_server_waits_for_nothing(http: Any) -> None:
    gate, ended = asyncio.Event(), asyncio.Event()

    async def run(request: Request) -> Answer | None:
        if request.body != b"go on":
            return Answer(200, [], request.body)
        request.answer(Answer(200, [], b"first"))
        await gate.wait()
        ended.set()
        return None

    front = Front(None, Routes(lambda _method, _path: HotRoute(run, _render), 1_000, 1_000))
    async with connected(front, http) as (reader, writer, state):
        for body, answer in ((b"go on", b"first"), (b"second", b"second")):
            writer.write(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            assert (await reader.readuntil(answer)).startswith(b"HTTP/1.1 200 OK\r\n")
        while state.tasks:
            await sleep(0)
        assert not ended.is_set()
        gate.set()
        await ended.wait()
