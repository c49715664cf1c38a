"""Requests and answers of the hot routes: plain ASGI in front of FastAPI, one function per route.

A route function takes a `Request` and returns an `Answer`. `FastPath` calls it straight from the socket; the declared
FastAPI route (for openapi.json) calls the same function through `declared`. Knows no operation.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl

from mesh.errors import HeadersTooLarge, Malformed, MeshError, TooLarge

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

QUERY_BYTES_MAX: Final = 16_384
HEADER_COUNT_MAX: Final = 200

_log = logging.getLogger(__name__)


class Request:
    """One request with its whole body. `headers` are ASGI's: lower-case names, in order, repeats kept."""

    __slots__ = ("body", "headers", "method", "query", "raw_path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, body: bytes) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.receive = receive
        self.body = body

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def all(self, name: bytes) -> list[str]:
        """All values of `name` (lower case)."""
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    def arguments(self) -> dict[str, str]:
        """Query arguments, decoded once. Raises Malformed on a repeated one or too many bytes."""
        if not self.query:
            return {}
        if len(self.query) > QUERY_BYTES_MAX:
            raise Malformed(f"the query is longer than {QUERY_BYTES_MAX} bytes", code="query_too_long")
        try:
            pairs = parse_qsl(self.query.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise Malformed("the query is not percent-encoded UTF-8", code="query_invalid") from None
        arguments = dict(pairs)
        if len(arguments) != len(pairs):
            raise Malformed("a query argument is given twice", code="query_invalid")
        return arguments

    async def gone(self) -> None:
        """Return once the caller has hung up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Answer(NamedTuple):
    """Status, headers without content-length, body."""

    status: int
    headers: Headers
    body: bytes = b""


Route: TypeAlias = Callable[[Request], Awaitable[Answer]]
Render: TypeAlias = Callable[[Exception], Answer]


class HotRoute(NamedTuple):
    """A route function and how its errors look on the wire."""

    run: Route
    render: Render


async def read_body(scope: Scope, receive: Receive, bytes_max: int, headers_max: int) -> bytes:
    """The whole body. Raises HeadersTooLarge, TooLarge while streaming, Malformed on an encoded body."""
    _check_head(scope["headers"], bytes_max, headers_max)
    chunks: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("the caller hung up before the body was complete", code="disconnected")
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if total > bytes_max:
            raise _too_large(bytes_max)
        if not message.get("more_body"):
            return b"".join([*chunks, chunk]) if chunks else chunk
        chunks.append(chunk)


def _check_head(headers: Headers, bytes_max: int, headers_max: int) -> None:
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"content-length" and int(value) > bytes_max:
            raise _too_large(bytes_max)
        if name == b"content-encoding" and value != b"identity":
            raise Malformed("send the body without Content-Encoding", code="encoding_not_supported")
    if size > headers_max or len(headers) > HEADER_COUNT_MAX:
        raise HeadersTooLarge(f"the headers are larger than {headers_max} bytes or more than {HEADER_COUNT_MAX}")


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max} bytes, the limit of this gateway ([gateway] body_bytes_max)")


async def send_answer(send: Send, answer: Answer) -> None:
    """Write an answer in one piece."""
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


class FastPath:
    """ASGI: `find(method, raw path)` names a hot route, everything else goes to `app` (performance.md C)."""

    def __init__(
        self,
        app: Any,
        find: Callable[[str, bytes], HotRoute | None],
        *,
        body_bytes_max: int,
        header_bytes_max: int,
    ) -> None:
        self.app = app
        self._find = find
        self._body_bytes_max = body_bytes_max
        self._header_bytes_max = header_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (route := self._find(scope["method"], scope["raw_path"])) is None:
            await self.app(scope, receive, send)
            return
        await send_answer(send, await self.serve(route, scope, receive))

    async def serve(self, route: HotRoute, scope: Scope, receive: Receive) -> Answer:
        """The answer of `route`; errors in the dialect of the route."""
        try:
            body = b""
            if scope["method"] not in ("GET", "HEAD"):
                body = await read_body(scope, receive, self._body_bytes_max, self._header_bytes_max)
            return await route.run(Request(scope, receive, body))
        except MeshError as error:
            return route.render(error)
        except Exception as error:  # noqa: BLE001 - the last line before the socket; logged, never leaked
            _log.exception("unexpected error in %s %s", scope["method"], scope["path"])
            return route.render(error)
