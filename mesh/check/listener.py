"""Our side of a check: a handler, a receiver or a gateway that answers what its script says, and keeps what it got.

A listener answers starts (and callbacks) from one list of replies and cancels from another; the last reply of a list
also serves all that follow. Knows no case.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import urlsplit

import h11

from mesh.check.accepting import Accepting
from mesh.check.case import CLOSE, NOTHING, Reply
from mesh.check.wire import READ_BYTES, Request, read_request
from mesh.clock import sleep

REQUESTS_MAX: Final = 10_000
"""Kept requests of one listener."""
NO_BODY: Final = (204, 304)

Fill = Callable[[Any], Any]
"""Puts in what a text names, see play.py."""


class Listener:
    """One server on a free port. `fill` resolves names in replies when they are sent."""

    def __init__(self, bind: str, here: str) -> None:
        self.requests: list[Request] = []
        self.ever: list[Request] = []
        """As `requests`, with what was forgotten."""
        self.fill: Fill = lambda value: value
        self._bind = bind
        self._here = here
        self._replies: dict[str, list[Reply]] = {"start": [Reply()], "cancel": [Reply(status=202)]}
        self._holds: dict[str, asyncio.Event] = {}
        self._news = asyncio.Condition()
        self._door = Accepting(self._serve)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._door.open(self._bind, limit=READ_BYTES)
        self.url = f"http://{self._here}:{self._door.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()

    def script(self, kind: str, replies: Sequence[Reply]) -> None:
        """What is answered from now on, to requests of that kind."""
        self._replies[kind] = list(replies) or [Reply()]

    def forget(self) -> None:
        """Begin anew with what was got."""
        self.requests.clear()

    def hold(self, name: str) -> asyncio.Event:
        """What replies that are held under `name` wait for."""
        return self._holds.setdefault(name, asyncio.Event())

    def let_go(self) -> None:
        """Send every reply that is held."""
        for held in self._holds.values():
            held.set()

    def got(self, kind: str) -> list[Request]:
        """The requests of that kind, in order."""
        return [one for one in self.requests if _kind(one) == kind]

    async def until(self, kind: str, count: int, within_s: float) -> Request | None:
        """The `count`th request of that kind, once it is there; None when it is not within that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._news:
                await self._news.wait_for(lambda: len(self.got(kind)) >= count)
        found = self.got(kind)
        return found[count - 1] if 0 < count <= len(found) else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(h11.RemoteProtocolError, OSError):
            parser = h11.Connection(h11.SERVER)
            while (request := await read_request(reader, writer, parser)) is not None:
                if _looks(request):
                    writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
                    parser = _after(parser)
                    continue
                if len(self.requests) < REQUESTS_MAX:
                    self.requests.append(request)
                if len(self.ever) < REQUESTS_MAX:
                    self.ever.append(request)
                reply = self._next(_kind(request))
                async with self._news:
                    self._news.notify_all()
                if not await self._answer(request, reply, writer):
                    return
                parser = _after(parser)

    def _next(self, kind: str) -> Reply:
        replies = self._replies[kind]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    async def _answer(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can go on."""
        if reply.after_ms:
            await sleep(reply.after_ms / 1000)
        if reply.hold:
            await self.hold(reply.hold).wait()
        if reply.framing == "reset":
            writer.transport.abort()
            return False
        body, kind = self._content(request, reply)
        headers = [(name, str(self.fill(value))) for name, value in reply.headers]
        if kind:
            headers.append(("content-type", kind))
        if reply.framing == "chunked":
            headers.append(("transfer-encoding", "chunked"))
        elif reply.framing != "close" and reply.status not in NO_BODY:
            headers.append(("content-length", str(len(body) + (reply.framing == "cut"))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        if reply.framing == "chunked":
            body = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode("latin-1") + body)
        await writer.drain()
        return reply.framing in ("length", "chunked") and CLOSE not in reply.headers

    def _content(self, request: Request, reply: Reply) -> tuple[bytes, str]:
        if reply.echo:
            return request.body, request.get("content-type") or ""
        if reply.json is NOTHING:
            return reply.body, reply.type
        return json.dumps(self.fill(reply.json), ensure_ascii=False).encode(), reply.type or "application/json"


def _looks(request: Request) -> bool:
    """A gateway that looks whether somebody is well: the one on trial, or one that knows who had this port before."""
    return request.method == "GET" and urlsplit(request.target).path.endswith("/healthz")


def _kind(request: Request) -> str:
    return "cancel" if urlsplit(request.target).path.endswith("/cancel") else "start"


def _after(parser: h11.Connection) -> h11.Connection:
    """A parser for the next request of the connection, with what came of it already."""
    left, _ = parser.trailing_data
    fresh = h11.Connection(h11.SERVER)
    if left:
        fresh.receive_data(left)
    return fresh
