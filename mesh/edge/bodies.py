"""Requests and answers by ASGI, within the bounds of the hot routes: for whoever serves an application another way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast

from mesh.edge.exchange import Answer, Headers, HotRoute, Request, Routes, check_head, too_large
from mesh.errors import Malformed, MeshError
from mesh.streams import Intake

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Caller:
    """The other end of an ASGI request (exchange.Sink)."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.disconnected = False
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    @property
    def task(self) -> asyncio.Task[Any]:
        return cast("asyncio.Task[Any]", asyncio.current_task())

    def answer(self, answer: Answer) -> None:
        self.answered.set_result(answer)

    async def gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True

    def left(self) -> bool:
        return self.disconnected

    def let_go(self) -> None:
        """Nobody waits for the tasks of ordinary routes."""


def request_of(scope: Scope, caller: Caller) -> Request:
    """An ASGI request without its body."""
    headers: Headers = [*scope["headers"]]
    return Request(scope["method"], scope["raw_path"], scope["query_string"], headers, dict(reversed(headers)), caller)


async def send_answer(answer: Answer, scope: Scope, send: Send) -> None:
    """Write an answer, piece by piece where it has a stream."""
    size = len(answer.body) if answer.stream is None else answer.stream.size
    headers = [*answer.headers, (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.stream is not None and scope["method"] != "HEAD":
        async for piece in answer.stream.chunks():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": answer.body})


async def read_body(request: Request, receive: Receive, routes: Routes, route: HotRoute | None = None) -> None:
    """Set `request.body`, or `request.intake` where `route` takes it there.

    Raises HeadersTooLarge, TooLarge while it streams, Malformed on an encoded body or a caller who hung up.
    """
    take = route.take if route is not None else None
    check_head(request.headers, request.first, routes, measure=True, large=take is not None)
    declared = int(request.first.get(b"content-length", b"0"))
    inline = routes.inline_bytes if take is not None else routes.body_bytes_max
    chunks: list[bytes] = []
    total = 0
    flow: _Flow | None = None
    while True:
        if max(total, declared) > inline and flow is None:
            intake = take(request) if take is not None else None
            take, inline = None, routes.body_bytes_max
            if intake is not None:
                request.intake = intake
                flow = _Flow(intake)
                for chunk in chunks:
                    await flow.feed(chunk)
            elif max(total, declared) > inline:
                raise too_large(routes)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("the caller hung up before the body was complete", code="disconnected")
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if flow is not None:
            await flow.feed(chunk)
        else:
            chunks.append(chunk)
        if not message.get("more_body") and (flow is not None or total <= inline):
            request.body = b"" if flow is not None else chunks[0] if len(chunks) == 1 else b"".join(chunks)
            return
        if not message.get("more_body"):
            receive = _nothing


async def _nothing() -> MutableMapping[str, Any]:
    """What follows the last piece that made a body too large for memory."""
    return {"type": "http.request", "body": b"", "more_body": False}


class _Flow:
    """Waits where a socket would be held back."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._room = asyncio.Event()
        self._fault: MeshError | None = None
        intake.watch(self._room.set, self._fail)

    def _fail(self, fault: MeshError) -> None:
        self._fault = fault
        self._room.set()

    async def feed(self, chunk: bytes) -> None:
        self._room.clear()
        if not self._intake.feed(chunk):
            await self._room.wait()
        if self._fault is not None:
            raise self._fault
