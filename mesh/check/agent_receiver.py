"""The kit's own gateway, as far as an agent talks to one: it takes completions and heartbeats, and answers as told.

Every try of a completion is kept, found by its completion token. Who wants to keep a journal is told that the operation
has ended, and remembered: the kit has no journals. Knows no probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, cast

import httptools

from mesh.check.accepting import Accepting
from mesh.check.agent_wire import CHUNK_BYTES, Header, Message
from mesh.clock import monotonic_s, now_ms

CALLBACK: Final = "/nexus/callback"
TASKS: Final = "/v1/tasks/"
HEARTBEAT: Final = TASKS + "heartbeat"
ENDED: Final = "ended"
CONFLICT: Final = 409
NOT_FOUND: Final = 404
_JSON: Final = ("content-type", "application/json")
TRIES_MAX: Final = 10_000
"""Requests kept in one check; an agent that sends more is past judging."""


@dataclass(slots=True)
class Say:
    """What the next try is answered. `cut`: the connection is dropped instead. `hold`: not before it is set."""

    status: int = 200
    headers: list[Header] = field(default_factory=list[Header])
    cut: bool = False
    hold: asyncio.Event | None = None

    @property
    def taken(self) -> bool:
        """Whether the agent was told that the completion is delivered."""
        return 200 <= self.status < 300 and not self.cut  # noqa: PLR2004


class Try(NamedTuple):
    """One request that came: a completion, or whatever it was."""

    at_s: float
    method: str
    path: str
    headers: list[Header]
    body: bytes
    say: Say

    def header(self, name: str) -> str:
        """The first value of `name` (lower case), empty when absent."""
        return next((value for known, value in self.headers if known == name), "")

    @property
    def token(self) -> str:
        """The operation token that it names."""
        return self.header("nexus-operation-token")

    @property
    def outcome(self) -> tuple[str, str, bytes]:
        """State, type and body: what it says of the operation."""
        return self.header("nexus-operation-state"), self.header("content-type"), self.body


class Receiver:
    """A server on `host`:`port`; port 0 is a free one. `url` is what agents are told."""

    def __init__(self, host: str, port: int, url: str = "") -> None:
        self._host = host
        self._port = port
        self.url = url.rstrip("/")
        self.tries: dict[str, list[Try]] = defaultdict(list)
        """By completion token; those without one under the empty name."""
        self.beats: dict[str, list[float]] = defaultdict(list)
        self.verdicts: dict[str, str] = {}
        self.durable: set[str] = set()
        """The tokens of attempts that keep a journal."""
        self.scripts: dict[str, deque[Say]] = {}
        """What the next tries of a token are answered, in order; 200 after that."""
        self._door = Accepting(self._serve)
        self._changed = asyncio.Condition()
        self._count = 0

    async def __aenter__(self) -> Self:
        door = self._door
        await door.open(self._host, self._port, limit=CHUNK_BYTES)
        host = f"[{door.host}]" if ":" in door.host else door.host
        self.url = self.url or f"http://{host}:{door.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()

    def everything(self) -> list[Try]:
        """All that came but heartbeats."""
        return [each for tries in self.tries.values() for each in tries]

    async def until(self, check: Callable[[], object], timeout_s: float) -> bool:
        """Wait until `check()` is true; it is asked again whenever something came. False when it never was."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(check)
        except TimeoutError:
            return bool(check())
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, httptools.HttpParserError, ValueError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one request and answer it; whether another may follow."""
        message = Message()
        parser: Any = httptools.HttpRequestParser(message)
        while not message.done:
            data = await reader.read(CHUNK_BYTES)
            if not data:
                return False
            waits = not message.headed
            parser.feed_data(data)
            if waits and message.headed and not message.done and ("expect", "100-continue") in message.headers:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method: str = parser.get_method().decode("latin-1")
        path = message.url.decode("latin-1")
        if path.partition("?")[0].endswith(HEARTBEAT):
            await _answer(writer, 200, [_JSON], await self._heartbeat(message.body))
            return True
        headers = dict(reversed(message.headers))
        if TASKS in path:
            await self._journal(writer, headers.get("mesh-task-token", ""), message.body)
            return True
        if method == "GET" and CALLBACK not in path:
            # Some gateway of this machine that looks after an agent, whose port this was before.
            await _answer(writer, NOT_FOUND, [], b"")
            return True
        token = headers.get("token", "")
        script = self.scripts.get(token)
        say = script.popleft() if script else Say()
        entry = Try(monotonic_s(), method, path, message.headers, bytes(message.body), say)
        await self._note(lambda: self.tries[token].append(entry))
        if say.hold is not None:
            await say.hold.wait()
        if say.cut:
            return False
        await _answer(writer, say.status, say.headers, b"")
        return True

    async def _journal(self, writer: asyncio.StreamWriter, alone: str, body: bytearray) -> None:
        tokens = [alone] if alone else _tokens(body)
        await self._note(lambda: self.durable.update(tokens))
        if alone:
            problem = {"code": "operation_ended", "detail": "a check keeps no journals", "status": CONFLICT}
            await _answer(writer, CONFLICT, [_JSON], json.dumps(problem).encode())
            return
        answers: list[dict[str, Any]] = [{"status": ENDED, "length": 0, "entries": []} for _ in tokens]
        await _answer(writer, 200, [_JSON], json.dumps({"now_ms": now_ms(), "tasks": answers}).encode())

    async def _heartbeat(self, body: bytearray) -> bytes:
        tokens = _tokens(body)
        await self._note(lambda: [self.beats[token].append(monotonic_s()) for token in tokens])
        verdicts = self.verdicts | dict.fromkeys(self.durable, ENDED)
        return json.dumps({"tasks": [{"status": verdicts.get(token, "ok")} for token in tokens]}).encode()

    async def _note(self, change: Callable[[], object]) -> None:
        self._count += 1
        if self._count <= TRIES_MAX:
            change()
        async with self._changed:
            self._changed.notify_all()


def _tokens(body: bytearray) -> list[str]:
    """Of the tasks that a body is about; none where it makes no sense."""
    try:
        return [str(task["token"]) for task in cast("list[dict[str, Any]]", json.loads(body)["tasks"])]
    except (ValueError, KeyError, TypeError):
        return []


async def _answer(writer: asyncio.StreamWriter, status: int, headers: list[Header], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers)]
    if status != 204:  # noqa: PLR2004 - which has no length
        lines.append(f"content-length: {len(body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
