"""HTTP/1.1 as it is on the wire, for both ends of a check: what is asked leaves byte for byte, what comes is kept.

h11 reads what comes. Nothing here mends, normalises, follows or retries; a client library would, and would hide faults.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import h11

from mesh.clock import monotonic_s

BODY_BYTES_MAX: Final = 16 << 20
READ_BYTES: Final = 64 << 10
SHOWN_BYTES: Final = 400

Pairs = Sequence[tuple[str, str]]


class WireFault(Exception):
    """No answer, or none that is HTTP; the text says which."""


class Message:
    """Head and body of a request or an answer. Names in lower case, in order, repeats kept."""

    def __init__(self, headers: list[tuple[str, str]], body: bytes) -> None:
        self.headers = headers
        self.body = body

    def all(self, name: str) -> list[str]:
        """The values of every header of that name."""
        return [value for known, value in self.headers if known == name]

    def get(self, name: str) -> str | None:
        """The value of the first header of that name."""
        return next(iter(self.all(name)), None)

    @property
    def json(self) -> Any:
        """Raises ValueError."""
        return json.loads(self.body)

    def _shown(self, start: str) -> str:
        kept = [f"{name}: {value}" for name, value in self.headers if name not in ("date", "server")]
        body = self.body[:SHOWN_BYTES].decode("utf-8", "replace") + ("..." if len(self.body) > SHOWN_BYTES else "")
        return "; ".join(filter(None, [start, *kept])) + (f" | {body}" if body else " | no body")


class Answer(Message):
    """`took_ms` from the last byte sent to the last one read."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, took_ms: float) -> None:
        super().__init__(headers, body)
        self.status = status
        self.took_ms = took_ms

    def __str__(self) -> str:
        return self._shown(str(self.status))


class Request(Message):
    """One request that a listener got."""

    def __init__(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes, at_s: float) -> None:
        super().__init__(headers, body)
        self.method = method
        self.target = target
        self.at_s = at_s
        split = urlsplit(target)
        self.path = split.path
        self.query = dict(parse_qsl(split.query, keep_blank_values=True))

    def __str__(self) -> str:
        return self._shown(f"{self.method} {self.target}")


def request_bytes(method: str, target: str, headers: Pairs, body: bytes, *, chunked: bool) -> bytes:
    """A request as it leaves. Nothing is checked: what is sent may be wrong on purpose."""
    lines = list(headers)
    if chunked:
        lines.append(("transfer-encoding", "chunked"))
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _pairs_of_bytes(body)) + b"0\r\n\r\n"
    elif method not in ("GET", "HEAD") or body:
        lines.append(("content-length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _pairs_of_bytes(body: bytes) -> list[bytes]:
    size = max(2, len(body) // 64)
    return [body[at : at + size] for at in range(0, len(body), size)]


async def ask(
    url: str,
    method: str,
    target: str,
    headers: Pairs = (),
    body: bytes = b"",
    *,
    chunked: bool = False,
    within_s: float = 30.0,
) -> Answer:
    """One request to the host of `url` on a connection of its own. Raises WireFault."""
    split = urlsplit(url)
    port = split.port or (443 if split.scheme == "https" else 80)
    context = ssl.create_default_context() if split.scheme == "https" else None
    host = ("host", split.netloc.rpartition("@")[2])
    sent = request_bytes(method, target, [host, *headers], body, chunked=chunked)
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(split.hostname, port, ssl=context, limit=READ_BYTES)
            try:
                writer.write(sent)
                return await _read_answer(reader, method)
            finally:
                writer.close()
    except TimeoutError:
        raise WireFault(f"no answer within {within_s:g} s") from None
    except (OSError, h11.RemoteProtocolError) as fault:
        raise WireFault(f"{type(fault).__name__}: {fault}") from None


async def _read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    began_s = monotonic_s()
    parser = h11.Connection(h11.CLIENT)
    # h11 reads an answer only to a request of its own; what really left may be one that it would refuse to send.
    parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    status, headers, chunks, size = 0, list[tuple[str, str]](), list[bytes](), 0
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(READ_BYTES)
            if not data and not status:
                raise WireFault("the connection was closed without an answer")
            parser.receive_data(data)
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, _headers(event.headers)
        elif isinstance(event, h11.Data):
            chunks.append(bytes(event.data))
            size += len(event.data)
            if size > BODY_BYTES_MAX:
                raise WireFault(f"the answer is larger than {BODY_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, b"".join(chunks), (monotonic_s() - began_s) * 1000)
        elif isinstance(event, h11.ConnectionClosed):
            raise WireFault("the connection was closed without an answer")


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: h11.Connection
) -> Request | None:
    """The next request of a connection; None at its end. Raises h11.RemoteProtocolError."""
    begun: h11.Request | None = None
    at_s, chunks = 0.0, list[bytes]()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            if parser.they_are_waiting_for_100_continue:
                writer.write(parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            parser.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Request):
            begun, at_s = event, monotonic_s()
        elif isinstance(event, h11.Data):
            chunks.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and begun is not None:
            method, target = begun.method.decode("latin-1"), begun.target.decode("latin-1")
            return Request(method, target, _headers(begun.headers), b"".join(chunks), at_s)
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _headers(raw: Any) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]
