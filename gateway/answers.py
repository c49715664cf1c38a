"""What an agent's reply to a start means. Pure; the table of P43 as one function."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from mesh.errors import Malformed, ReplyInvalid
from mesh.pool import Reply
from mesh.store.layout import Outcome
from mesh.wire import (
    failure_json,
    format_link,
    parse_handler_failure,
    parse_http_date,
    parse_operation_error,
    parse_started,
    peer_failure,
    sound_links,
)

LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 3_600_000

PROXY_STATUSES: Final = frozenset({502, 503, 504, 520, 521, 522, 523, 524})
"""What proxies answer for an agent that they could not reach (RFC 9110, 15.6; 520 on: content networks)."""

_DROPPED: Final = frozenset(
    b"connection keep-alive transfer-encoding content-length date server set-cookie te trailer upgrade"
    b" nexus-operation-state".split()
)
_DROPPED_PREFIX: Final = (b"mesh-", b"proxy-", b"access-control-")
"""What a handler's refusal may not say to the caller: framing, and what only the mesh itself says."""


class Succeeded(msgspec.Struct, frozen=True, gc=False):
    """200."""

    outcome: Outcome
    word: ClassVar = "succeeded"


class Started(msgspec.Struct, frozen=True, gc=False):
    """201. `lease_ms` > 0: the agent will heartbeat (header `Mesh-Lease-Ms`)."""

    token: str
    lease_ms: int
    links: list[str]
    word: ClassVar = "started"


class Unsuccessful(msgspec.Struct, frozen=True, gc=False):
    """424: the operation itself failed or was canceled."""

    state: str
    outcome: Outcome
    word: ClassVar = "unsuccessful"


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A handler error that must not be retried."""

    outcome: Outcome
    word: ClassVar = "refused"


class TryAgain(msgspec.Struct, frozen=True, gc=False):
    """A handler error worth repeating, or no answer that the protocol knows.

    `own_word`: the agent itself answered, as far as can be told; not a proxy that speaks for one that is away.
    """

    type: str
    message: str
    failure: dict[str, Any] | None
    retry_after_ms: int
    own_word: bool = True
    word: ClassVar = "retryable"


StartAnswer: TypeAlias = Succeeded | Started | Unsuccessful | Refused | TryAgain

_digits = re.compile(rb"[0-9]{1,9}").fullmatch


def retry_after_ms(reply: Reply) -> int:
    """`Retry-After` as a delay in milliseconds, 0 without one; a date is read against the reply's own `Date`."""
    value = reply.header(b"retry-after")
    if value is None:
        return 0
    if _digits(value):
        return int(value) * 1000
    try:
        base = parse_http_date((reply.header(b"date") or b"").decode("latin-1"))
        return max(0, parse_http_date(value.decode("latin-1")) - base)
    except Malformed:
        return 0


def _speaks_nexus(reply: Reply) -> bool:
    """Whether a handler said it, as opposed to a proxy or to another mesh that could not reach its own agent."""
    if reply.header(b"mesh-failure-source") is not None:
        return False
    if reply.header(b"nexus-request-retryable") is not None:
        return True
    failure = peer_failure(reply.headers, reply.body)
    # A lone message is what many proxies send as JSON, and so is JSON that had to be wrapped into `details`.
    return failure is not None and not {"metadata", "cause"}.isdisjoint(failure)


def _links(reply: Reply) -> list[str]:
    """Those that can be read: handed on, a bad one makes Temporal's callers repeat the start."""
    values = [value.decode("latin-1") for name, value in reply.headers if name == b"nexus-link"]
    return [format_link(link) for link in sound_links(values)] if values else values


def read_start_reply(reply: Reply) -> StartAnswer:  # noqa: PLR0911 - one return per row of the table
    """The meaning of a reply; never raises for what a peer sent."""
    status = reply.status
    if status == 200:  # noqa: PLR2004
        said = dict(reversed(reply.headers))
        content_type = said.get(b"content-type")
        links = _links(reply) if b"nexus-link" in said else []
        kind = content_type.decode("latin-1") if content_type else None
        return Succeeded(Outcome("result", "", kind, reply.body, links=links))
    if status == 201:  # noqa: PLR2004
        try:
            token = parse_started(reply.headers, reply.body)
        except ReplyInvalid as fault:
            if fault.code == "token_too_long":
                return Unsuccessful("failed", Outcome("mesh", "token_too_long"))
            return TryAgain("UNKNOWN", fault.detail, None, 0)
        said = dict(reply.headers)
        lease = reply.header(b"mesh-lease-ms") if b"mesh-lease-ms" in said else None
        lease_ms = int(lease) if lease is not None and _digits(lease) else 0
        links = _links(reply) if b"nexus-link" in said else []
        return Started(token, min(max(lease_ms, LEASE_MS_MIN), LEASE_MS_MAX) if lease_ms else 0, links)
    if status == 424:  # noqa: PLR2004
        outcome = parse_operation_error(reply.headers, reply.body)
        if outcome is None:
            return TryAgain("UNKNOWN", "a 424 that names no state", None, 0)
        failure = Outcome("failure", body=failure_json(outcome.failure), links=_links(reply))
        return Unsuccessful(outcome.state, failure)
    if not 400 <= status <= 599:  # noqa: PLR2004
        return TryAgain("UNKNOWN", f"status {status} is no answer to a start", None, 0)
    error = parse_handler_failure(status, reply.headers, reply.body)
    if error.retryable:
        own_word = status not in PROXY_STATUSES or _speaks_nexus(reply)
        return TryAgain(error.type, error.message, error.failure, retry_after_ms(reply), own_word)
    headers = [
        (name, value) for name, value in reply.headers if name not in _DROPPED and not name.startswith(_DROPPED_PREFIX)
    ]
    body = failure_json(error.failure)
    original = b"" if body == reply.body else reply.body
    return Refused(Outcome("handler_error", error.type, None, body, status, headers, original=original))
