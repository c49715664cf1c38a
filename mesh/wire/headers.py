"""Which headers cross the mesh, and which may not (decision 36, reliability.md S19, S20).

Headers are ASGI's: a list of (name, value) as bytes. Names are compared without regard to case and leave in
lower case; values leave byte for byte. Knows no routes and sets no header of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from mesh.errors import Malformed

RawHeader: TypeAlias = tuple[bytes, bytes]
RawHeaders: TypeAlias = Sequence[RawHeader]

FORWARDED_BYTES_MAX: Final = 8192
"""Names and values of a caller's headers that travel to the agent (Temporal's limit, case 87)."""
CALLBACK_BYTES_MAX: Final = 8192
"""Names and values of one operation's callback headers."""
KEY_CHARS_MAX: Final = 255

_LEGAL: Final = b"\t" + bytes(range(0x20, 0x7F))
"""What a header value may hold; `bytes.translate` deletes it, so anything left over is illegal."""
_token = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}").fullmatch
"""A header name that the connection pool can send (mesh/pool/head.py)."""
_key = re.compile(r"[!-~]{1,255}").fullmatch
_quoted_key = re.compile(r'"((?:[^"\\]|\\["\\])*+)"').fullmatch
_unescape = re.compile(r"\\(.)").sub

_HOP_BY_HOP: Final = frozenset(
    b"connection expect http2-settings keep-alive te trailer trailers transfer-encoding upgrade".split()
)
_STAYS: Final = _HOP_BY_HOP | frozenset(
    b"host content-length authorization cookie prefer idempotency-key"
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
    media_type = (content_type or b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json" or media_type.endswith(b"+json")


def _refuse_illegal(headers: RawHeaders, kind: str) -> None:
    for name, value in headers:
        if value.translate(None, _LEGAL):
            raise Malformed(
                f"the {kind} header {name!r} has bytes that are not visible ASCII", code="header_invalid"
            )


def forwarded_headers(raw: RawHeaders) -> list[RawHeader]:
    """A caller's headers for the agent: all but hop-by-hop ones, those `Connection` names, the gateway's own.

    Order and repetition stay. Raises Malformed on a value outside visible ASCII, space and tab, or above
    FORWARDED_BYTES_MAX in all.
    """
    kept: list[RawHeader] = []
    named: set[bytes] = set()
    size = 0
    for key, value in raw:
        name = key.lower()
        if name in _STAYS:
            if name == b"connection":
                named.update(option.strip() for option in value.lower().split(b","))
        elif not name.startswith(_STAYS_PREFIX):
            kept.append((name, value))
            size += len(name) + len(value)
    if named:
        kept = [(name, value) for name, value in kept if name not in named]
        size = sum(len(name) + len(value) for name, value in kept)
    if size > FORWARDED_BYTES_MAX:
        raise Malformed(f"the headers are larger than {FORWARDED_BYTES_MAX} bytes", code="header_too_large")
    if b"".join([value for _, value in kept]).translate(None, _LEGAL):
        _refuse_illegal(kept, "request")
    return kept


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


def callback_headers(raw: RawHeaders) -> list[RawHeader]:
    """The `Nexus-Callback-*` headers of a start, prefix stripped, as the callback will carry them.

    Raises Malformed as `check_callback_headers` does.
    """
    found = [(key[len(_CALLBACK) :], value) for key, value in raw if key.lower().startswith(_CALLBACK)]
    return check_callback_headers(found) if found else found


def _parse_key(name: bytes, value: bytes) -> str:
    text = value.decode("latin-1").strip(" \t")
    if name == b"idempotency-key" and text.startswith('"'):
        match = _quoted_key(text)
        if match is None:
            raise Malformed("Idempotency-Key is not a quoted string", code="idempotency_key_invalid")
        text = _unescape(r"\1", match[1])
    if not _key(text):
        raise Malformed(
            f"an idempotency key has 1 to {KEY_CHARS_MAX} visible ASCII characters",
            code="idempotency_key_invalid",
        )
    return text


def idempotency_key(raw: RawHeaders) -> str | None:
    """The key in `Nexus-Request-Id` or `Idempotency-Key` (httpapi draft 07: quoted, or bare); None without.

    Raises Malformed when it is empty, too long or not visible ASCII, and when two of them differ.
    """
    found: str | None = None
    for key, value in raw:
        name = key.lower()
        if name in (b"nexus-request-id", b"idempotency-key"):
            text = _parse_key(name, value)
            if found is not None and text != found:
                raise Malformed("two different idempotency keys", code="idempotency_key_invalid")
            found = text
    return found
