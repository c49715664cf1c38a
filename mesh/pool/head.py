"""The bytes of a request head: which names the pool owns, which bytes would smuggle a line.

docs/why/attacks.md S19, S20; RFC 9110 sections 5.5 (values) and 5.6.2 (tokens); RFC 9112 section 3 (request line).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NewType

from mesh.errors import Malformed

if TYPE_CHECKING:
    from mesh.pool.target import Target

Headers = Sequence[tuple[bytes, bytes]]
Lines = NewType("Lines", bytes)
"""What `header_lines` made."""
NO_LINES = Lines(b"")

NAMES_REMEMBERED_MAX = 2048
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_POOL_OWNED = frozenset(
    b"host content-length transfer-encoding accept-encoding connection keep-alive proxy-connection "
    b"proxy-authorization te trailer upgrade expect".split()
)


def _legal(*codes: int) -> bytes:
    """For `translate`: what consists of `codes` stays as it is, anything else changes it. To delete them is slower."""
    return bytes(code if code in codes else (code + 1) % 256 for code in range(256))


_PATH = _legal(*(code for code in range(0x21, 0x7F) if code != ord("#")))
_VALUES = _legal(0x09, *range(0x20, 0x7F), *range(0x80, 0x100))
_good_names: set[bytes] = set()
_colon = b": ".join
_name, _value = itemgetter(0), itemgetter(1)


def request_head(
    method: bytes, target: Target, path: bytes, headers: Headers, body_bytes: int, lines: Lines = NO_LINES
) -> bytes:
    """Request line to empty line, Content-Length always set; `lines` are further headers.

    Raises Malformed (code `request_invalid`) for a path that is not an encoded origin-form, and as `header_lines`.
    """
    if path[:1] != b"/" or path.translate(_PATH) != path:
        message = "A request path must start with / and hold only percent-encoded visible ASCII."
        raise Malformed(message, code="request_invalid")
    length = b"content-length: %d\r\n" % body_bytes
    return b"".join((method, b" ", path, target.tail, length, lines, _checked(headers), b"\r\n"))


def header_lines(headers: Headers) -> Lines:
    """The lines of `headers`, for many requests without another look at them.

    Raises Malformed (code `request_invalid`) for a name that is not a token or belongs to the pool (Host,
    Content-Length, hop-by-hop), a value with control characters, CR and LF above all.
    """
    return Lines(_checked(headers))


def _checked(headers: Headers) -> bytes:
    if not headers:
        return b""
    if not _good_names.issuperset(map(_name, headers)):
        for name, _ in headers:
            if name not in _good_names:
                _check_name(name)
    values = b"".join(map(_value, headers))
    if values.translate(_VALUES) != values:
        message = "A header value holds a control character."
        raise Malformed(message, code="request_invalid")
    return b"\r\n".join(map(_colon, headers)) + b"\r\n"


def check_method(method: bytes) -> None:
    """Raises Malformed unless `method` is a token other than CONNECT."""
    if _TOKEN.fullmatch(method) is None or method == b"CONNECT":
        message = "The request method is not usable."
        raise Malformed(message, code="request_invalid")


def _check_name(name: bytes) -> None:
    if _TOKEN.fullmatch(name) is None:
        message = f"{name[:64]!r} is not a header name."
        raise Malformed(message, code="request_invalid")
    if name.lower() in _POOL_OWNED:
        message = f"Header {name.decode('ascii')} is set by the connection pool; leave it out."
        raise Malformed(message, code="request_invalid")
    if len(_good_names) < NAMES_REMEMBERED_MAX:
        _good_names.add(name)
