"""A proxy that breaks what passes through it on purpose, and targets with one at each of their doors.

A good gateway behind a meddler is a bad gateway to whoever stands in front: that is how the cases are shown to bite.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

import h11

from mesh.check import targets
from mesh.check.accepting import Accepting
from mesh.check.case import Ask, Call, Trial
from mesh.check.listener import Listener
from mesh.check.wire import READ_BYTES, Answer, Request, WireFault, ask, read_request
from mesh.clock import sleep
from tests.conformance.targets import ClientLibrary

FRAMING = ("host", "content-length", "transfer-encoding")
Asked = Callable[[Request], "Request | list[Request]"]
Answered = Callable[[Request, Answer], Answer]


@dataclass(frozen=True, kw_only=True)
class Meddling:
    """What is done at a door. `request` may give several to send, the first of which is answered; `late_ms` delays."""

    request: Asked | None = None
    answer: Answered | None = None
    follow: bool = False
    late_ms: int = 0


class Meddler:
    """A listener in front of `upstream` (a URL without a path)."""

    def __init__(self, upstream: str, meddling: Meddling) -> None:
        self._upstream = upstream
        self._meddling = meddling
        self._door = Accepting(self._serve)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._door.open(limit=READ_BYTES)
        self.url = f"http://127.0.0.1:{self._door.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(h11.RemoteProtocolError, OSError):
                parser = h11.Connection(h11.SERVER)
                while (request := await read_request(reader, writer, parser)) is not None:
                    await self._pass(request, writer)
                    parser = h11.Connection(h11.SERVER)
        except WireFault:
            writer.transport.abort()  # the answer behind was broken, so is this one

    async def _pass(self, request: Request, writer: asyncio.StreamWriter) -> None:
        does = self._meddling
        sent = does.request(request) if does.request is not None else request
        sent = sent if isinstance(sent, list) else [sent]
        answer = (await asyncio.gather(*[self._send(one) for one in sent]))[0]
        if does.follow and answer.status // 100 == 3:
            where = urlsplit(answer.get("location") or "")
            answer = await ask(f"http://{where.netloc}", request.method, where.path, (), request.body)
        if does.answer is not None:
            answer = does.answer(request, answer)
        if does.late_ms:
            await sleep(does.late_ms / 1000)
        headers = [*_unframed(answer.headers), ("content-length", str(len(answer.body)))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode("latin-1") + answer.body)
        await writer.drain()

    async def _send(self, one: Request) -> Answer:
        chunked = one.get("transfer-encoding") is not None
        return await ask(self._upstream, one.method, one.target, _unframed(one.headers), one.body, chunked=chunked)


def _unframed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [header for header in headers if header[0] not in FRAMING]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something a target of that kind could do wrong, and the cases that must notice.

    front    between whoever asks and the target; for a client: between it and its gateway
    back     between a gateway and its handlers
    tail     between the target and the receivers of its callbacks
    report   between the reporters of completions and a gateway
    """

    name: str
    kind: str
    cases: tuple[int, ...]
    front: Meddling | None = None
    back: Meddling | None = None
    tail: Meddling | None = None
    report: Meddling | None = None


@dataclass
class BrokenGateway(targets.Gateway):
    """A gateway with a fault; what it leaves behind is not ended either."""

    tidies: bool = False
    fault: Fault = field(kw_only=True)
    _reported: str = ""
    _front: str = ""

    @asynccontextmanager
    async def opened(self, trial: Trial, handler: Listener, receiver: Listener) -> AsyncGenerator[Mapping[str, Any]]:
        real = self.url
        async with AsyncExitStack() as stack:
            at_handler, at_receiver = handler.url, receiver.url
            if self.fault.back:
                handler.url = (await stack.enter_async_context(Meddler(at_handler, self.fault.back))).url
            if self.fault.tail:
                receiver.url = (await stack.enter_async_context(Meddler(at_receiver, self.fault.tail))).url
            names = await stack.enter_async_context(super().opened(trial, handler, receiver))
            if self.fault.report:
                self._reported = (await stack.enter_async_context(Meddler(real, self.fault.report))).url
            if self.fault.front:
                self.url = (await stack.enter_async_context(Meddler(real, self.fault.front))).url
            yield names
            self.url = real

    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]:
        if self._reported and step.url.endswith("/nexus/callback"):
            step = replace(step, url=f"{self._reported}/nexus/callback")
        return super().operation(step, names)


@dataclass
class BrokenAgent(targets.Agent):
    """An agent with a fault."""

    fault: Fault = field(kw_only=True)

    @asynccontextmanager
    async def opened(self, trial: Trial, handler: Listener, receiver: Listener) -> AsyncGenerator[Mapping[str, Any]]:
        real, path = self.url, urlsplit(self.url).path
        async with AsyncExitStack() as stack:
            if self.fault.tail:
                receiver.url = (await stack.enter_async_context(Meddler(receiver.url, self.fault.tail))).url
            if self.fault.front:
                front = Meddler(real.removesuffix(path), self.fault.front)
                self.url = (await stack.enter_async_context(front)).url + path
            names = await stack.enter_async_context(super().opened(trial, handler, receiver))
            yield names
            self.url = real


@dataclass
class BrokenClient(ClientLibrary):
    """The client library with a fault."""

    fault: Fault = field(kw_only=True)

    async def call(self, step: Call, gateway: str) -> list[str]:
        assert self.fault.front is not None
        async with Meddler(gateway, self.fault.front) as front:
            return await super().call(step, front.url)
