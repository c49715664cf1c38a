"""A request that asks for another protocol is answered as it is, its body included (RFC 9110 section 7.8 allows it).

The parser stops behind the head of such a request and skips its body: bytes that come later would be read as a request
of their own, which whoever stands in front of us never saw. So a fresh parser is told the length of that body and goes
on. Java's client asks for HTTP/2 in this way with the first request it sends. No socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import httptools

if TYPE_CHECKING:
    from mesh.edge.exchange import Headers


class Told(Protocol):
    """What a parser tells."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


def framing(headers: Headers) -> bytes:
    """The header line that says how long the body is; nothing when there is none. The parser has checked it."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value)):
            return b"%b: %b\r\n" % (name, value)
    return b""


def parser_behind(told: Told, line: bytes) -> Any:
    """A parser for what comes behind a head with this `framing`: first the body, then further requests."""
    parser: Any = httptools.HttpRequestParser(_Behind(told) if line else told)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
    if line:
        parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % line)
    return parser


class _Behind:
    """Passes on all but the first head."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._first = True
        self.on_body = told.on_body
        self.on_message_complete = told.on_message_complete

    def on_message_begin(self) -> None:
        if not self._first:
            self._told.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._first:
            self._told.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._first:
            self._told.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._first:
            self._first = False
        else:
            self._told.on_headers_complete()
