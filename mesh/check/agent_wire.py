"""HTTP/1.1 as the kit for agents speaks it: one connection that may be cut anywhere, bytes as given.

No client library stands between, for these mend paths, repeat requests and always read to the end. Read with httptools,
as gateways read: what they make something of is no breach here. The conformance cases (wire.py) read with h11, which is
strict, for there the form itself is judged. Knows no operation.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import httptools

from mesh.pool import Target

Header: TypeAlias = tuple[str, str]

CONNECT_TIMEOUT_S: Final = 5.0
HEAD_BYTES_MAX: Final = 64 << 10
BODY_BYTES_MAX: Final = 8 << 20
CHUNK_BYTES: Final = 1 << 16


class NoAnswer(Exception):
    """The agent gave no answer that is HTTP: refused, cut, silent or garbled; the text says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. Names in lower case, in order, repeats kept."""

    status: int
    headers: list[Header]
    body: bytes

    def header(self, name: str) -> str:
        """The first value of `name` (lower case), empty when absent."""
        return next((value for known, value in self.headers if known == name), "")

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """As mesh/wire reads them."""
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]


class Message:
    """Collects what an httptools parser tells of one message after the other; `done` once the first is complete."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[Header] = []
        self.body = bytearray()
        self.headed = False
        self.done = False
        self.size = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.size += len(name) + len(value) + len(": \r\n")
        if self.size > HEAD_BYTES_MAX:
            message = f"headers of more than {HEAD_BYTES_MAX} bytes"
            raise ValueError(message)
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, body: bytes) -> None:
        self.body += body
        if len(self.body) > BODY_BYTES_MAX:
            message = f"a body of more than {BODY_BYTES_MAX} bytes"
            raise ValueError(message)

    def on_message_complete(self) -> None:
        self.done = True


class Line:
    """One connection to the agent. Whatever goes wrong on it is NoAnswer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: Target) -> Self:
        """Connect. Raises NoAnswer."""
        tls = ssl.create_default_context() if target.scheme == "https" else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return cls(*await asyncio.open_connection(target.host, target.port, ssl=tls, limit=CHUNK_BYTES))
        except TimeoutError:
            message = f"no connection to {target.origin} within {CONNECT_TIMEOUT_S:g} s"
        except OSError as fault:
            message = f"no connection to {target.origin}: {fault.strerror or fault}"
        raise NoAnswer(message)

    async def send(self, data: bytes) -> None:
        """Hand `data` to the system. Raises NoAnswer when the agent has closed."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            message = "the agent closed the connection while the request was sent"
            raise NoAnswer(message) from None

    async def first_byte(self, timeout_s: float) -> bool:
        """Whether an answer began within `timeout_s`. It cannot be read any more: cut the line."""
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await self._reader.read(1))
        except (TimeoutError, OSError):
            return False

    async def reply(self, timeout_s: float) -> Reply:
        """The next final answer. Raises NoAnswer."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reply()
        except TimeoutError:
            message = f"no answer within {timeout_s:g} s"
        except OSError:
            message = "the agent broke the connection instead of answering"
        except (httptools.HttpParserError, ValueError) as fault:
            message = f"the answer is no HTTP/1.1: {fault}"
        raise NoAnswer(message)

    async def _reply(self) -> Reply:
        while True:
            message = Message()
            parser: Any = httptools.HttpResponseParser(message)
            while not message.done:
                data = await self._reader.read(CHUNK_BYTES)
                if not data:
                    return _until_close(parser, message)
                parser.feed_data(data)
            status: int = parser.get_status_code()
            if status >= 200:  # noqa: PLR2004 - the first of the final ones
                return Reply(status, message.headers, bytes(message.body))

    def cut(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()


def _until_close(parser: Any, message: Message) -> Reply:
    """An answer without a length ends where the connection does."""
    status: int = parser.get_status_code()
    framed = {name for name, _ in message.headers} & {"content-length", "transfer-encoding"}
    if not message.headers or not status or framed:
        text = "the agent closed the connection instead of answering to the end"
        raise NoAnswer(text)
    return Reply(status, message.headers, bytes(message.body))


def request(
    target: Target,
    path: str,
    headers: Sequence[Header],
    body: bytes = b"",
    *,
    chunks: Sequence[bytes] | None = None,
    method: str = "POST",
) -> bytes:
    """The bytes of a request; `chunks` instead of `body` are sent with `Transfer-Encoding: chunked`."""
    framing = ("content-length", str(len(body))) if chunks is None else ("transfer-encoding", "chunked")
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{target.port}"]
    lines += [f"{name}: {value}" for name, value in [*headers, framing]]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if chunks is None:
        return head + body
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"
