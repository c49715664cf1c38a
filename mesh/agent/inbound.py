"""A start or cancel request as the host reads it: what its headers and query say (P40).

Most handlers never look at the headers, so what the host needs is read and the rest is left until they do. Callback
URLs are remembered, since a gateway names the same one in every request. Knows no operation and keeps no call.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import filterfalse
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import nexusrpc

from mesh import trace
from mesh.errors import Malformed
from mesh.pool import Target
from mesh.wire import (
    KEY_CHARS_MAX,
    OPERATION_TOKEN_BYTES_MAX,
    RawHeader,
    check_callback_headers,
    parse_duration_ms,
    parse_links,
)
from mesh.wire.headers import is_legal

CALLBACKS_REMEMBERED_MAX: Final = 256
QUERY_FIELDS_MAX: Final = 16
NAMES_REMEMBERED_MAX: Final = 1024
NAME_BYTES_REMEMBERED_MAX: Final = 64
TOKEN_BYTES_MAX: Final = 1024
"""Of a completion token that is looked at no further."""
MESH_CALLBACK: Final = "/nexus/callback"
"""Where a mesh takes completions, below its base URL (P50)."""

_CALLBACK: Final = b"nexus-callback-"
_plain: Final[set[bytes]] = set()
"""Names seen that are no callback header's; the same few come again and again."""

_duration_ms = lru_cache(maxsize=512)(parse_duration_ms)


class Callback(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Where the completion of one attempt goes.

    headers   the caller's `Nexus-Callback-*`, prefix stripped
    token     the completion token among them, also the lease's; empty when there is none
    gateway   base URL of the mesh that asked, when it is one: it takes heartbeats, and any of its gateways completions
    """

    url: str
    target: Target
    headers: list[RawHeader]
    token: str
    gateway: Target | None


class _AbstractStruct(msgspec.StructMeta, ABCMeta):
    pass


class StartHead(msgspec.Struct, metaclass=_AbstractStruct, frozen=True, eq=False, gc=False):
    """All of a start but its input, as a request or a task brought it. `attempt`: 1 when no mesh sent it."""

    content_type: str | None
    request_id: str | None
    attempt: int
    request_timeout_ms: int | None
    operation_timeout_ms: int | None
    links: list[nexusrpc.Link]
    callback: Callback | None

    @abstractmethod
    def headers(self) -> dict[str, str]:
        """What a handler sees, names in lower case; made anew for each who asks."""

    def replayed(self) -> dict[str, str]:
        """What the caller wants in the callback's headers."""
        headers = () if self.callback is None else self.callback.headers
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}

    @abstractmethod
    def trace(self) -> dict[str, str]:
        """The trace context among `headers`."""


class SentHead(StartHead, frozen=True, eq=False, gc=False):
    """Of a request; `first` has the first value of each of its headers."""

    first: Mapping[bytes, bytes]

    def headers(self) -> dict[str, str]:
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self.first.items()
            if name != b"nexus-link" and not name.startswith((_CALLBACK, b"content-"))
        }

    def trace(self) -> dict[str, str]:
        first = self.first
        known = b"traceparent" in first or b"tracestate" in first or b"baggage" in first
        return trace.received(self.headers()) if known else {}


def number_of(text: str) -> int:
    """Of a `Mesh-Run` or `Mesh-Attempt`; 1 for what is none."""
    if text == "1":
        return 1
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1  # noqa: PLR2004


def path_of(scope: Mapping[str, Any]) -> bytes:
    """The path as sent, below where the app is mounted. Decoded names would have lost their `%2F` (P1)."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        message = "this ASGI server does not say the raw path; use one that does, such as uvicorn"
        raise Malformed(message)
    root: str = scope.get("root_path", "")
    return raw.removeprefix(root.encode()) if root else raw


def read_start(headers: Sequence[RawHeader], first: Mapping[bytes, bytes], query: bytes) -> StartHead:
    """Names must be in lower case (ASGI). Of a repeated header the value in `first` counts, links excepted.

    Raises Malformed: timeouts, links, callback URL or callback headers that cannot be used, an encoded body.
    """
    links: list[str] = []
    if b"nexus-link" in first:
        links = [value.decode("latin-1") for name, value in headers if name == b"nexus-link"]
    if b"content-encoding" in first and first[b"content-encoding"].lower() not in (b"identity", b""):
        message = "the body is encoded; send it without Content-Encoding"
        raise Malformed(message)
    field = first.get
    request_id = field(b"nexus-request-id", b"").decode("latin-1") or None
    if request_id is not None and len(request_id) > KEY_CHARS_MAX:
        raise Malformed(f"Nexus-Request-Id is longer than {KEY_CHARS_MAX} characters")
    attempt = field(b"mesh-attempt", b"1")
    request_timeout, operation_timeout = field(b"request-timeout"), field(b"operation-timeout")
    return SentHead(
        field(b"content-type", b"").decode("latin-1") or None,
        request_id,
        1 if attempt == b"1" else number_of(attempt.decode("latin-1")),
        _duration_ms(request_timeout.decode("latin-1")) if request_timeout else None,
        _duration_ms(operation_timeout.decode("latin-1")) if operation_timeout else None,
        [nexusrpc.Link(link.url, link.type) for link in parse_links(links)] if links else [],
        _callback(query, _replayed(headers, first), mesh=b"mesh-operation-id" in first) if query else None,
        first,
    )


def _replayed(headers: Sequence[RawHeader], first: Mapping[bytes, bytes]) -> list[RawHeader]:
    """The caller's `Nexus-Callback-*`, prefix stripped, repeats kept."""
    found: list[RawHeader] = []
    for name in filterfalse(_plain.__contains__, first):
        if name.startswith(_CALLBACK):
            found.append((name[len(_CALLBACK) :], first[name]))
        elif len(_plain) < NAMES_REMEMBERED_MAX and len(name) <= NAME_BYTES_REMEMBERED_MAX:
            _plain.add(name)
    if found and len(first) != len(headers):
        return [(name[len(_CALLBACK) :], value) for name, value in headers if name.startswith(_CALLBACK)]
    return found


def read_cancel(headers: Iterable[RawHeader], query: bytes) -> tuple[dict[str, str], str, int | None]:
    """The headers a handler sees, the operation token (header before query), the request timeout. Raises Malformed."""
    visible: dict[str, str] = {}
    for name, value in headers:
        if not name.startswith((b"content-", b"nexus-callback-")):
            visible.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    token = visible.pop("nexus-operation-token", "") or (_field(query, "token") if query else "")
    if not token:
        message = "no operation token: send Nexus-Operation-Token, or ?token="
        raise Malformed(message)
    if len(token) > OPERATION_TOKEN_BYTES_MAX:
        message = f"the operation token is longer than {OPERATION_TOKEN_BYTES_MAX} bytes"
        raise Malformed(message)
    timeout = visible.get("request-timeout")
    return visible, token, _duration_ms(timeout) if timeout else None


def _callback(query: bytes, replayed: list[RawHeader], *, mesh: bool) -> Callback | None:
    found = _destination(query)
    if found is None:
        return None
    url, target, gateway = found
    headers, token = sound_callback_headers(replayed), ""
    for name, value in headers:
        if name == b"token":
            token = value.decode("latin-1")
            break
    return Callback(url, target, headers, token, gateway if mesh and token else None)


def _plain_token(value: bytes) -> bool:
    return len(value) <= TOKEN_BYTES_MAX and is_legal(value)


def sound_callback_headers(headers: list[RawHeader]) -> list[RawHeader]:
    """`check_callback_headers`, of which what every mesh sends needs nothing: a token alone. Raises Malformed."""
    if len(headers) == 1 and headers[0][0] == b"token" and _plain_token(headers[0][1]):
        return headers
    return check_callback_headers(headers) if headers else headers


@lru_cache(maxsize=CALLBACKS_REMEMBERED_MAX)
def _destination(query: bytes) -> tuple[str, Target, Target | None] | None:
    url = _field(query, "callback")
    return (url, *destination_of(url)) if url else None


@lru_cache(maxsize=CALLBACKS_REMEMBERED_MAX)
def destination_of(callback_url: str) -> tuple[Target, Target | None]:
    """Where a completion goes, and the base URL of the mesh that takes it, if it is one. Raises Malformed."""
    base = callback_url.removesuffix(MESH_CALLBACK)
    return Target.parse(callback_url), Target.parse(base) if base != callback_url else None


def _field(query: bytes, name: str) -> str:
    try:
        fields = parse_qsl(query.decode("ascii"), max_num_fields=QUERY_FIELDS_MAX, errors="strict")
    except ValueError:
        message = "the query cannot be read"
        raise Malformed(message) from None
    return next((value for key, value in fields if key == name), "")


def merged(headers: Mapping[str, str]) -> list[RawHeader]:
    """Header names and values as the pool sends them; a value is written as it was read."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
