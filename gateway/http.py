"""ASGI in front of FastAPI: hot routes for servers other than our own, and bodies within bounds.

`mesh/edge` answers hot routes straight from the socket; this is the same for whoever serves the app another way, and
for the declared FastAPI routes. Knows no operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from mesh.edge import Answer, Headers, HotRoute, Request, Routes, serve
from mesh.edge.exchange import check_head, too_large
from mesh.errors import Malformed, MeshError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def read_body(headers: Headers, receive: Receive, routes: Routes) -> bytes:
    """The whole body. Raises HeadersTooLarge, TooLarge while streaming, Malformed on an encoded body."""
    check_head(headers, dict(reversed(headers)), routes, measure=True)
    chunks: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("the caller hung up before the body was complete", code="disconnected")
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if total > routes.body_bytes_max:
            raise too_large(routes)
        if not message.get("more_body"):
            return b"".join([*chunks, chunk]) if chunks else chunk
        chunks.append(chunk)


class _Caller:
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
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def serve(self, route: HotRoute, scope: Scope, receive: Receive) -> Answer:
        """The answer of `route` to an ASGI request."""
        caller = _Caller(receive)
        headers: Headers = [*scope["headers"]]
        request = Request(scope["method"], scope["raw_path"], scope["query_string"], headers, caller)
        try:
            if request.method not in ("GET", "HEAD"):
                request.body = await read_body(headers, receive, self.hot)
        except MeshError as error:
            return route.render(error)
        return await serve(route, request) or await caller.answered
