"""Which headers cross the mesh, and which may not (P42; docs/why/attacks.md S19, S20).

Headers are ASGI's: a list of (name, value) as bytes. Names are compared without regard to case and leave in
lower case; values leave byte for byte. Knows no routes and sets no header of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, TypeAlias

import msgspec

from mesh.errors import Malformed
from mesh.wire.links import format_link, parse_links

RawHeader: TypeAlias = tuple[bytes, bytes]
RawHeaders: TypeAlias = Sequence[RawHeader]

FORWARDED_BYTES_MAX: Final = 8192
"""Names and values of a caller's headers that travel to the agent (Temporal's limit, case 87)."""
CALLBACK_BYTES_MAX: Final = 8192
"""Names and values of one operation's callback headers."""
KEY_CHARS_MAX: Final = 255
LISTS_REMEMBERED_MAX: Final = 1024
LIST_BYTES_REMEMBERED_MAX: Final = 1024
"""Names of the headers of one request."""

_LEGAL: Final = bytes(code if code in (0x09, *range(0x20, 0x7F)) else 0x20 for code in range(256))
"""What a header value may hold: `bytes.translate` leaves it as it is, and changes anything else."""
_token = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}").fullmatch
"""A header name that the connection pool can send (mesh/pool/head.py)."""
_name = itemgetter(0)
_key = re.compile(r"[!-~]{1,255}").fullmatch
_quoted_key = re.compile(r'"((?:[^"\\]++|\\["\\])*)"').fullmatch
_unescape = re.compile(r"\\(.)").sub

_HOP_BY_HOP: Final = frozenset(
    b"connection expect http2-settings keep-alive te trailer trailers transfer-encoding upgrade".split()
)
_STAYS: Final = _HOP_BY_HOP | frozenset(
    b"host content-length content-type authorization cookie prefer idempotency-key"
    # Said to the gateway alone: it writes its own timeouts, and keeps the reply for readers who asked for
    # no encoding.
    b" request-timeout operation-timeout accept-encoding forwarded".split()
)
_STAYS_PREFIX: Final = (b"nexus-", b"mesh-", b"x-forwarded-", b"x-client-cert", b"proxy-")

_CALLBACK: Final = b"nexus-callback-"
# Authorization and Cookie are not in these lists although S19 names the first: the caller sends its own
# credential to its own receiver, at a URL the egress policy vetted, and gains nothing it could not send
# itself; Temporal and plain webhooks rely on such tokens. What is refused would break the framing or forge
# what the mesh itself says.
_RESERVED: Final = _HOP_BY_HOP | {b"host", b"accept-encoding", b"nexus-link"}
_RESERVED_PREFIX: Final = (b"content-", b"nexus-operation-", b"webhook-", b"ce-", b"mesh-", b"proxy-")


def header(raw: RawHeaders, name: bytes) -> bytes | None:
    """The first value of `name` (lower case), None when absent."""
    for key, value in raw:
        if key == name or key.lower() == name:
            return value
    return None


def is_json_type(content_type: bytes | None) -> bool:
    """`application/json` and `+json` types, with or without parameters."""
    if content_type == b"application/json":
        return True
    media_type = (content_type or b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json" or media_type.endswith(b"+json")


def is_legal(value: bytes) -> bool:
    """Whether a header may have this value: visible ASCII, space and tab."""
    return value.translate(_LEGAL) == value


def _refuse_illegal(headers: RawHeaders, kind: str) -> None:
    for name, value in headers:
        if not is_legal(value):
            raise Malformed(
                f"the {kind} header {name!r} has bytes that are not visible ASCII", code="header_invalid"
            )


class CallerHeaders(msgspec.Struct, frozen=True, gc=False):
    """A caller's headers, sorted.

    forwarded  for the agent: all but hop-by-hop ones, those `Connection` names, the gateway's own and `Content-Type`
    callback   the `Nexus-Callback-*` ones, prefix stripped, as the callback will carry them
    links      `Nexus-Link`, one value for each, commas in its URL percent-encoded
    key        `Nexus-Request-Id` or `Idempotency-Key` (httpapi draft 07: quoted, or bare); "" without
    """

    forwarded: list[RawHeader]
    callback: list[RawHeader]
    links: list[str]
    key: str


_STAY, _TRAVEL, _CALL_BACK, _LINK, _KEY, _NAME_OTHERS = range(6)

Ways: TypeAlias = tuple[tuple[int, int], ...]
_ways: Final[dict[tuple[bytes, ...], Ways]] = {}
"""By the names of a request, in its order: where those stand that do not stay, and which way each goes.

A caller sends the same names again and again, so they are judged once.
"""


def _ways_of(names: tuple[bytes, ...]) -> Ways:
    kinds = enumerate(map(_kind_of, names))
    ways = tuple([(at, kind) for at, kind in kinds if kind != _STAY])
    if len(_ways) < LISTS_REMEMBERED_MAX and sum(map(len, names)) <= LIST_BYTES_REMEMBERED_MAX:
        _ways[names] = ways
    return ways


def _kind_of(name: bytes) -> int:
    if name == b"connection":
        return _NAME_OTHERS
    if name in (b"nexus-request-id", b"idempotency-key"):
        return _KEY
    if name.startswith(_CALLBACK):
        return _CALL_BACK
    if name == b"nexus-link":
        return _LINK
    return _STAY if name in _STAYS or name.startswith(_STAYS_PREFIX) else _TRAVEL


def caller_headers(raw: RawHeaders) -> CallerHeaders:
    """Sort the headers of a start; names in lower case (ASGI). Order and repetition stay.

    Raises Malformed on a value outside visible ASCII, space and tab, above FORWARDED_BYTES_MAX or CALLBACK_BYTES_MAX in
    all, on a bad link, on a bad key and on two different ones.
    """
    forwarded: list[RawHeader] = []
    callback: list[RawHeader] = []
    links: list[str] = []
    key = ""
    named: set[bytes] = set()
    names = tuple(map(_name, raw))
    ways = _ways.get(names)
    for at, kind in _ways_of(names) if ways is None else ways:
        one = raw[at]
        if kind == _TRAVEL:
            forwarded.append(one)
        elif kind == _CALL_BACK:
            callback.append((one[0][len(_CALLBACK) :], one[1]))
        elif kind == _LINK:
            links.append(one[1].decode("latin-1"))
        elif kind == _KEY:
            key = _parse_key(one, key)
        elif kind == _NAME_OTHERS:
            named.update(option.strip() for option in one[1].lower().split(b","))
    if named:
        forwarded = [one for one in forwarded if one[0] not in named]
    if forwarded:
        _check_forwarded(forwarded)
    return CallerHeaders(
        forwarded,
        check_callback_headers(callback) if callback else callback,
        [format_link(link) for link in parse_links(links)] if links else links,
        key,
    )


def _check_forwarded(forwarded: list[RawHeader]) -> None:
    values = b"".join([one[1] for one in forwarded])
    if len(values) + sum([len(one[0]) for one in forwarded]) > FORWARDED_BYTES_MAX:
        detail = f"the headers are larger than {FORWARDED_BYTES_MAX} bytes"
        raise Malformed(detail, code="header_too_large")
    if not is_legal(values):
        _refuse_illegal(forwarded, "request")


def check_callback_headers(headers: RawHeaders) -> list[RawHeader]:
    """Headers for a callback request, names without prefix in lower case, values verbatim, quotes and all.

    Raises Malformed on a name that is no token or is reserved, a value outside visible ASCII, space and
    tab, and above CALLBACK_BYTES_MAX in all.
    """
    checked: list[RawHeader] = []
    size = 0
    for key, value in headers:
        name = key.lower()
        if not _token(name):
            raise Malformed(f"{key!r} is not a header name", code="callback_header_invalid")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIX):
            raise Malformed(
                f"a callback header cannot be named {name.decode()}", code="callback_header_invalid"
            )
        checked.append((name, value))
        size += len(name) + len(value)
    if size > CALLBACK_BYTES_MAX:
        raise Malformed(
            f"the callback headers are larger than {CALLBACK_BYTES_MAX} bytes", code="header_too_large"
        )
    _refuse_illegal(checked, "callback")
    return checked


def check_key(text: str) -> str:
    """An idempotency key as it is. Raises Malformed."""
    if not _key(text):
        raise Malformed(
            f"an idempotency key has 1 to {KEY_CHARS_MAX} visible ASCII characters",
            code="idempotency_key_invalid",
        )
    return text


def _parse_key(one: RawHeader, before: str) -> str:
    """The key in a header; `before`: what an earlier one said, or ""."""
    text = one[1].decode("latin-1").strip(" \t")
    if one[0] == b"idempotency-key" and text.startswith('"'):
        match = _quoted_key(text)
        if match is None:
            raise Malformed("Idempotency-Key is not a quoted string", code="idempotency_key_invalid")
        text = _unescape(r"\1", match[1])
    check_key(text)
    if before and text != before:
        raise Malformed("two different idempotency keys", code="idempotency_key_invalid")
    return text
