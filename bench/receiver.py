"""The caller's callback receiver in a process of its own. `python -m bench.receiver`, one line of JSON on stdin.

Verifies each signed CloudEvents callback and tells whoever is connected to its unix socket: a line
`{idempotency key} {operation id}` for a right one, `! {reason}` for a wrong one.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final, cast

import httptools
import msgspec
import uvloop

from bench.work import result_of
from mesh.errors import MeshError, Unauthenticated
from mesh.events import OPERATION_SUCCEEDED
from mesh.tokens import verify_webhook

BODY_BYTES_MAX: Final = 64 << 10

_TAKEN: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_REFUSED: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Settings(msgspec.Struct):
    """`secret`: the webhook secret of the namespace; `tap`: path of the unix socket."""

    secret: str
    tap: str


class Record(msgspec.Struct):
    """What the callback must say of the operation."""

    id: str
    state: str
    idempotency_key: str
    result: Any


class CloudEvent(msgspec.Struct):
    """Structured mode."""

    type: str
    subject: str
    data: Record


_event = msgspec.json.Decoder(CloudEvent).decode


class Taps:
    """Who listens; lines of one event-loop turn travel in one write."""

    def __init__(self) -> None:
        self._open: set[asyncio.StreamWriter] = set()
        self._lines: list[bytes] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        await reader.read()
        self._open.discard(writer)
        writer.close()

    def tell(self, line: bytes) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(line)

    def _flush(self) -> None:
        written = b"".join(self._lines)
        self._lines.clear()
        for writer in self._open:
            writer.write(written)


class Callbacks(asyncio.Protocol):
    """One connection of the gateway."""

    def __init__(self, secret: str, taps: Taps) -> None:
        self._secret = secret
        self._taps = taps
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own kind

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        headers, body = self._headers, self._body
        self._headers, self._body = {}, b""
        try:
            self._taps.tell(check(self._secret, headers, body))
        except (MeshError, msgspec.MsgspecError) as error:
            self._taps.tell(b"! %b\n" % f"{error} in {body[:300]!r}".encode())
            self._answer(_REFUSED)
        else:
            self._answer(_TAKEN)

    def _answer(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


def check(secret: str, headers: dict[str, str], body: bytes) -> bytes:
    """The line for the tap. Raises MeshError or MsgspecError for a callback that is not right."""
    delivery = verify_webhook(secret, headers, body)
    if len(body) > BODY_BYTES_MAX:
        raise Unauthenticated("the callback is too long")
    event = _event(body)
    record, key = event.data, event.data.idempotency_key.encode()
    right = (
        event.type == OPERATION_SUCCEEDED
        and delivery == f"{record.id}.1"
        and event.subject == record.id
        and record.state == "succeeded"
        and msgspec.json.encode(record.result) == result_of(key)
    )
    if not right:
        raise Unauthenticated("the callback does not say what the operation did")
    return b"%b %b\n" % (key, record.id.encode())


async def serve(settings: Settings) -> None:
    """Serve until killed; says its port on stdout."""
    loop = asyncio.get_running_loop()
    taps = Taps()
    tap = await asyncio.start_unix_server(taps.accept, settings.tap)
    server = await loop.create_server(lambda: Callbacks(settings.secret, taps), "127.0.0.1", 0, backlog=1024)
    print(msgspec.json.encode({"event": "ready", "port": server.sockets[0].getsockname()[1]}).decode(), flush=True)
    async with tap, server:
        await server.serve_forever()


def main() -> None:
    """Read the settings, serve."""
    uvloop.run(serve(msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)))


if __name__ == "__main__":
    main()
