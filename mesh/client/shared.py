"""What both caller clients share: where the gateway is, the options of a start, how steps become requests.

Knows no I/O: aio.py (asyncio) and sync.py (blocking) do it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict, TypeVar, cast

import httpx
import nexusrpc

from mesh.blob import Blob
from mesh.client.asking import AWAY, Answer, Ask, Unreached
from mesh.client.events import EventReader
from mesh.client.order import Order, called, new_key
from mesh.errors import ConfigError, Malformed
from mesh.gateways import gateways_of, visible
from mesh.trace import continued
from mesh.wire import Link, format_links
from mesh.wire.digests import told_digest

CONNECT_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 100
QUIET_MAX_S: Final = 45.0
"""An event stream pings every 15 s; one that is silent for three pings is dead."""

MEND: Final = "Start one with `mesh dev`, or name another with gateway= or MESH_URL"

I = TypeVar("I")  # noqa: E741 - the names that nexusrpc.Operation[I, O] has in its documentation
O = TypeVar("O")  # noqa: E741

LIMITS: Final = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)


class StartOptions(TypedDict, total=False):
    """Options of every start.

    idempotency_key        the same key and content is the same operation; made up when left out, so that repeats
                           after a fault are safe
    callback               URL, or `{url, headers?, format?}`, that is told the outcome
    schedule_to_close_ms   the whole, from acceptance;  schedule_to_start_ms: until an agent began
    start_to_close_ms      from the agent's 201 on;  request_timeout_ms: one request to an agent
    priority               0 to 9, 9 goes first among what waits for the endpoint from your namespace
    delay_ms               so long after its acceptance it begins; start_at: then, RFC 3339 text or an aware datetime
    version                only instances of this version of the agent run it; without a live one it waits for one
    labels                 names and values to find the operation by
    headers                passed on to the agent
    links                  `nexusrpc.Link`: what the call belongs to, shown beside the operation and to its agent
    output                 type of the result when the operation is named by strings; default plain JSON
    """

    idempotency_key: str | None
    callback: str | Mapping[str, Any] | None
    schedule_to_close_ms: int | None
    schedule_to_start_ms: int | None
    start_to_close_ms: int | None
    request_timeout_ms: int | None
    priority: int | None
    delay_ms: int | None
    start_at: str | datetime | None
    version: str | None
    labels: Mapping[str, str] | None
    headers: Mapping[str, str] | None
    links: Sequence[nexusrpc.Link] | None
    output: Any


class Base:
    """What both clients share: where the gateway is, and how a start is put together."""

    def __init__(self, gateway: str | Sequence[str] | None, key: str | None, retry_for_s: float) -> None:
        self._gateways = gateways_of(gateway)
        key = key or os.environ.get("MESH_KEY")
        if key and not visible(key):
            message = "the API key (key= or MESH_KEY) has other than visible ASCII characters; no key of a mesh has"
            raise ConfigError(message)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self.retry_for_s = retry_for_s
        self.at = 0
        """Which gateway is asked, modulo their number."""

    def request(self, ask: Ask, at: int) -> dict[str, Any]:
        """What httpx is told; `at` as `self.at` was when the request began."""
        return {
            "method": ask.method,
            "url": self._gateways[at % len(self._gateways)] + ask.path,
            "headers": self._headers | ask.headers,
            "content": (ask.body or None) if isinstance(ask.body, bytes) else self.streamed(ask.body),
            "timeout": httpx.Timeout(ask.timeout_s, connect=CONNECT_TIMEOUT_S),
        }

    def streamed(self, blob: Blob) -> Any:
        """A body as this client's httpx streams it."""
        return iter(blob)

    @staticmethod
    def kept(reply: httpx.Response, blob: Blob, found: str) -> Answer | Unreached:
        """A reply that was streamed to `blob`, whose SHA-256 is `found`."""
        told = told_digest({name.encode(): value.encode("latin-1") for name, value in reply.headers.items()})
        if told is not None and told != found:
            blob.close()
            return Unreached(f"what came from {reply.url.host} has another digest than it was to have")
        return Answer(reply.status_code, reply.headers, b"", blob)

    def watching(self, path: str, reader: EventReader) -> Ask:
        headers = {"accept": "text/event-stream"}
        if reader.last_seq:
            headers["last-event-id"] = str(reader.last_seq)
        return Ask("GET", path, headers, b"", QUIET_MAX_S)

    def leave(self, at: int) -> None:
        """The gateway `at` is away: ask the next one from now on, unless another request has gone there already."""
        if self.at == at:
            self.at = at + 1

    def answer(self, reply: httpx.Response, at: int) -> Answer:
        if reply.status_code in AWAY:
            self.leave(at)
        return Answer(reply.status_code, reply.headers, reply.content)

    def fault(self, fault: httpx.TransportError, at: int) -> Unreached:
        self.leave(at)
        url = fault.request.url
        where, why = f"{url.scheme}://{url.netloc.decode()}", str(fault) or type(fault).__name__
        if isinstance(fault, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreached(f"no gateway answers at {where} ({why}). {MEND}")
        return Unreached(f"no answer from the gateway at {where}: {why}")

    @staticmethod
    def order(endpoint: str, what: tuple[Any, ...], options: StartOptions) -> Order:
        unknown = [name for name in options if name not in StartOptions.__annotations__]
        if unknown:
            # A call that is silently not what was meant, without its timeout, say, is found out too late.
            known = ", ".join(StartOptions.__annotations__)
            message = f"{unknown[0]!r} is no option of a start; there are {known}"
            raise TypeError(message)
        operation, rest = called(what, options.get("output", Any))
        if len(rest) > 1:
            message = f"{operation.operation} was given {len(rest)} inputs; an operation has one"
            raise ConfigError(message)
        names = ("schedule_to_close_ms", "schedule_to_start_ms", "start_to_close_ms", "request_timeout_ms")
        return Order(
            endpoint,
            operation,
            _value(rest[0]) if rest else None,
            new_key() if (key := options.get("idempotency_key")) is None else key,
            options.get("callback"),
            {name: value for name in names if (value := options.get(name)) is not None},
            options.get("labels"),
            _headers(options.get("headers") or {}, options.get("links") or ()),
            _begin(options.get("delay_ms"), options.get("start_at"), options.get("priority")),
            options.get("version"),
        )


def _begin(delay_ms: int | None, start_at: str | datetime | None, priority: int | None) -> dict[str, Any]:
    if isinstance(start_at, datetime):
        if start_at.tzinfo is None:
            message = "start_at needs a time zone: datetime(..., tzinfo=...)"
            raise ConfigError(message)
        start_at = start_at.isoformat()
    begin = {"delay_ms": delay_ms, "start_at": start_at, "priority": priority}
    return {name: value for name, value in begin.items() if value is not None}


def _value(value: Any) -> Any:
    """A path means the file."""
    return Blob(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value


def _headers(headers: Mapping[str, str], links: Sequence[nexusrpc.Link]) -> dict[str, str]:
    """With the trace that this code belongs to: the current span, or the call that a handler serves."""
    whole = continued(headers)
    for name, value in whole.items():
        if not visible(f"{name}{value}".replace(" ", "").replace("\t", "")):
            message = f"headers: {name!r} has line breaks, or characters beyond ASCII: percent-encode them"
            raise ConfigError(message)
    if links:
        try:
            whole["nexus-link"] = format_links([Link(link.url, link.type) for link in links])
        except Malformed as error:
            raise ConfigError(error.detail) from None
    return whole
