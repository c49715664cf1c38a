"""The other side of the gateway: scripted agents and receivers on real sockets, able to answer anything, or nothing.

An actor keeps all that it was sent. A script is a function of the call; it returns a `Reply`, raw bytes, or writes to
the connection itself and returns None.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from mesh.check.accepting import Accepting
from mesh.clock import monotonic_s
from tests.ports import lasting_port
from tests.surface.wire import Answer, Message, Pairs, ask, pairs, read_body, read_head


class Reply:
    """What an actor answers. `length` False: no Content-Length, the body ends with the connection."""

    def __init__(self, status: int = 200, body: bytes = b"", headers: Pairs = (), *, length: bool = True) -> None:
        self.status = status
        self.body = body
        self.headers = pairs(headers)
        self.length = length

    def packed(self) -> bytes:
        headers = [*self.headers, ("content-length", str(len(self.body)))] if self.length else self.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"HTTP/1.1 {self.status} X\r\n{lines}\r\n".encode("latin-1") + self.body


def as_json(value: Any, status: int = 200, headers: Pairs = ()) -> Reply:
    return Reply(status, json.dumps(value).encode(), [("content-type", "application/json"), *pairs(headers)])


def started(token: str = "agent-token", headers: Pairs = ()) -> Reply:  # noqa: S107 - a token of the test
    """201: the agent goes on by itself."""
    return as_json({"token": token, "state": "running"}, 201, headers)


def handler_error(status: int, kind: str, message: str = "as scripted", **details: Any) -> Reply:
    failure = {"message": message, "metadata": {"type": "nexus.HandlerError"}, "details": {"type": kind, **details}}
    return as_json(failure, status)


def operation_error(state: str, message: str = "as scripted") -> Reply:
    failure = {"message": message, "metadata": {"type": "nexus.OperationError"}, "details": {"state": state}}
    return as_json(failure, 424, {"nexus-operation-state": state})


class Call(Message):
    """One request that an actor got. `number` counts from 1 over all its connections."""

    def __init__(self, number: int, start: str, headers: list[tuple[str, str]], body: bytes) -> None:
        super().__init__(start, headers, body)
        self.number = number
        self.at_s = monotonic_s()
        self.method, self.target, _ = start.split(" ")
        self.path = urlsplit(self.target).path
        self.query = parse_qs(urlsplit(self.target).query)
        self.answered = asyncio.Event()

    @property
    def is_cancel(self) -> bool:
        return self.path.endswith("/cancel")

    @property
    def operation(self) -> str:
        return self["mesh-operation-id"]

    @property
    def attempt(self) -> int:
        return int(self["mesh-attempt"])

    @property
    def completion_token(self) -> str:
        return self["nexus-callback-token"]

    async def complete(
        self,
        state: str = "succeeded",
        body: bytes = b'"late"',
        headers: Pairs = (),
        *,
        token: str | None = None,
        port: int = 0,
    ) -> Answer:
        """Report the outcome to the callback that came with this start, or to the same at the gateway on `port`."""
        url = urlsplit(self.query["callback"][0])
        given = [
            ("token", self.completion_token if token is None else token),
            ("nexus-operation-state", state),
            *([("content-type", "application/json")] if body and "content-type" not in dict(pairs(headers)) else []),
            *pairs(headers),
        ]
        port = port or url.port or 0
        return await ask(port, "POST", url.path, given, body)


Script = Callable[[Call, asyncio.StreamWriter], "Awaitable[Reply | bytes | None]"]


async def _ok(call: Call, _writer: asyncio.StreamWriter) -> Reply:
    return as_json(None) if call.method == "POST" else Reply(404)


class Actor:
    """A listener on loopback. `script` may be replaced at any time; `replies(...)` are given one after the other.

    Who looks whether it is well (P302) gets a 404 and is no call, unless `probed` says what it gets.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: Script = _ok
        self.probed: Script | None = None
        self.open = 0
        """Calls that are not answered yet."""
        self.open_max = 0
        self._news = asyncio.Condition()
        self._door = Accepting(self._serve)
        self.port = 0

    async def start(self, port: int = 0) -> Self:
        await self._door.open(port=port or lasting_port(), limit=1 << 22)
        self.port = self._door.port
        return self

    async def stop(self) -> None:
        """Stop listening and cut all connections."""
        await self._door.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def starts(self) -> list[Call]:
        return [call for call in self.calls if not call.is_cancel]

    @property
    def cancels(self) -> list[Call]:
        return [call for call in self.calls if call.is_cancel]

    def replies(self, *replies: Reply | bytes) -> None:
        """The answers to the calls from now on, in order; the last one also to all that follow."""
        left = list(replies)

        async def script(_call: Call, _writer: asyncio.StreamWriter) -> Reply | bytes:
            return left.pop(0) if len(left) > 1 else left[0]

        self.script = script

    def holds(self) -> asyncio.Event:
        """Leave all calls unanswered until the event is set; then answer null."""
        gate = asyncio.Event()

        async def script(_call: Call, _writer: asyncio.StreamWriter) -> Reply:
            await gate.wait()
            return as_json("held")

        self.script = script
        return gate

    async def until(self, count: int, within_s: float = 30.0, *, cancels: bool = False) -> Call:
        """The `count`th start (or cancel), once it is there."""
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: len(self.cancels if cancels else self.starts) >= count)
        return (self.cancels if cancels else self.starts)[count - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while not writer.is_closing():
                start, headers = await read_head(reader)
                body = await read_body(reader, headers, to_end=False)
                await self._answer(Call(len(self.calls) + 1, start, headers, body), writer)

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        script = self.script
        if call.method == "GET" and call.path.endswith("/healthz"):
            if self.probed is None:
                writer.write(Reply(404).packed())
                return
            script = self.probed
        else:
            self.calls.append(call)
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        async with self._news:
            self._news.notify_all()
        try:
            reply = await script(call, writer)
        finally:
            self.open -= 1
        if isinstance(reply, Reply):
            writer.write(reply.packed())
            if not reply.length:
                writer.close()
        elif reply is not None:
            writer.write(reply)
            writer.close()
        call.answered.set()
