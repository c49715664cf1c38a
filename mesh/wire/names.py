"""Names on the path: service, operation and endpoint, and the raw path they travel in.

Owns decoding exactly once from the raw path (docs/why/attacks.md S25) and the limits of names. Knows no routes.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from mesh.errors import Malformed, NotFound

NAME_BYTES_MAX: Final = 1000
"""Service and operation names, UTF-8 bytes (Temporal's limit; P1)."""
ENDPOINT_NAME_MIN: Final = 2
ENDPOINT_NAME_MAX: Final = 200

_ENDPOINT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]").fullmatch
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]").search
_DOTS: Final = (".", "..")
"""URL libraries on the way to the agent remove these segments, encoded or not (RFC 3986 section 5.2.4)."""


def split_path(raw_path: bytes, prefix: bytes) -> list[str]:
    """The decoded segments of `raw_path` behind `prefix`; `b""` segments stay, as empty names.

    `raw_path` is ASGI's: undecoded, a query is cut off. Raises NotFound when the path is not under
    `prefix`, Malformed on a bad escape, invalid UTF-8, control characters and dot segments.
    """
    path = raw_path.partition(b"?")[0]
    if not path.startswith(prefix):
        raise NotFound("no such path")
    rest = path[len(prefix) :]
    if not prefix.endswith(b"/"):
        if rest and not rest.startswith(b"/"):
            raise NotFound("no such path")
        rest = rest[1:]
    if not rest:
        return []
    try:
        if b"%" not in rest:
            text = rest.decode()
            segments = text.split("/")
        elif _BAD_ESCAPE(rest):
            raise Malformed("the path has a bad percent escape", code="path_invalid")
        else:
            segments = [unquote_to_bytes(part).decode() for part in rest.split(b"/")]
            text = "".join(segments)
    except UnicodeDecodeError:
        raise Malformed("the path is not UTF-8", code="path_invalid") from None
    # isprintable() is the cheap way to say "surely no control character".
    if not text.isprintable() and _CONTROL(text):
        raise Malformed("the path has a control character", code="path_invalid")
    if "." in segments or ".." in segments:
        raise Malformed("the path has a dot segment", code="path_invalid")
    return segments


def quote_segment(name: str) -> str:
    """`name` as one path segment: everything but RFC 3986's unreserved characters percent-encoded.

    Raises Malformed for `.` and `..`, which no encoding carries, and for lone surrogates.
    """
    if name in _DOTS:
        raise Malformed("'.' and '..' cannot be names", code="name_invalid")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise Malformed("a name is not valid Unicode", code="name_invalid") from None


def _check_name(kind: str, name: str) -> str:
    if not name:
        raise Malformed(f"the {kind} name is empty", code="name_invalid")
    if name in _DOTS:
        raise Malformed(f"the {kind} name cannot be '.' or '..'", code="name_invalid")
    if name.isascii() and name.isprintable():
        size = len(name)
    else:
        if _CONTROL(name):
            raise Malformed(f"the {kind} name has a control character", code="name_invalid")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise Malformed(f"the {kind} name is not valid Unicode", code="name_invalid") from None
    if size > NAME_BYTES_MAX:
        raise Malformed(f"the {kind} name is longer than {NAME_BYTES_MAX} bytes", code="name_invalid")
    return name


def check_service(name: str) -> str:
    """`name` itself. Raises Malformed: empty, above NAME_BYTES_MAX, control characters, dot segments."""
    return _check_name("service", name)


def check_operation(name: str) -> str:
    """As `check_service`, for operation names."""
    return _check_name("operation", name)


def check_endpoint(name: str) -> str:
    """`name` itself. Raises Malformed: 2 to 200, letter first, alphanumeric last, else also `-`, `_`, `.`."""
    if not ENDPOINT_NAME_MIN <= len(name) <= ENDPOINT_NAME_MAX:
        raise Malformed(
            f"an endpoint name has {ENDPOINT_NAME_MIN} to {ENDPOINT_NAME_MAX} characters", code="name_invalid"
        )
    if not _ENDPOINT_NAME(name):
        raise Malformed(
            "an endpoint name begins with a letter, goes on with letters, digits, '-', '_' or '.',"
            " and ends with a letter or digit",
            code="name_invalid",
        )
    return name
