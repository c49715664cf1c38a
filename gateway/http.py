"""ASGI in front of FastAPI: hot routes for servers other than our own, and bodies within bounds.

`mesh/edge` answers hot routes straight from the socket; this is the same for whoever serves the app another way, and
for the declared FastAPI routes. Knows no operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from mesh.edge import Answer, Headers, HotRoute, Request, Routes, serve
from mesh.edge.bodies import Receive, read_body
from mesh.errors import MeshError

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Caller:
    """The other end of an ASGI request (exchange.Sink)."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.disconnected = False
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answer(self, answer: Answer) -> None:
        self.answered.set_result(answer)

    async def gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True

    def left(self) -> bool:
        return self.disconnected


def request_of(scope: Scope, caller: Caller) -> Request:
    """An ASGI request without its body."""
    headers: Headers = [*scope["headers"]]
    return Request(scope["method"], scope["raw_path"], scope["query_string"], headers, caller)


class Front:
    """ASGI: hot routes first, everything else to `app` (specs/protocol.md). `hot` is what mesh/edge looks for."""

    def __init__(self, app: Any, hot: Routes) -> None:
        self.app = app
        self.hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (route := self.hot.find(scope["method"], scope["raw_path"])) is None:
            await self.app(scope, receive, send)
            return
        answer = await self.serve(route, scope, receive)
        size = len(answer.body) if answer.stream is None else answer.stream.size
        headers = [*answer.headers, (b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.stream is not None and scope["method"] != "HEAD":
            async for piece in answer.stream.chunks():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": answer.body})

    async def serve(self, route: HotRoute, scope: Scope, receive: Receive) -> Answer:
        """The answer of `route` to an ASGI request."""
        caller = Caller(receive)
        request = request_of(scope, caller)
        try:
            if request.method not in ("GET", "HEAD"):
                await read_body(request, receive, self.hot, route)
            answer = await serve(route, request)
        except MeshError as error:
            return route.render(error)
        finally:
            if request.intake is not None:
                request.intake.abandon()
        return answer or await caller.answered
