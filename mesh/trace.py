"""W3C trace context in the SDK: the trace that a request came with goes on in what its handler asks for.

Owns the three headers between a request that came in and those that go out, with OpenTelemetry or without: it is used
where the program has loaded it by itself, for who has not, has no span either. Makes no trace and no span of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

HEADERS: Final = ("traceparent", "tracestate", "baggage")
"""W3C Trace Context, W3C Baggage."""

_inbound: ContextVar[Mapping[str, str]] = ContextVar("mesh_trace")


def enter(headers: Mapping[str, str]) -> None:
    """What this task does from here on belongs to the trace of a request with these headers (names in lower case).

    With OpenTelemetry its spans become children of the caller's.
    """
    found = received(headers) if headers else {}
    if not found and not _inbound.get(None):
        return
    _inbound.set(found)
    if found and _opentelemetry():
        from opentelemetry import context, propagate  # noqa: PLC0415 - loaded already, and never needed

        context.attach(propagate.extract(found))


def received(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace context among a request's headers (names in lower case)."""
    if "traceparent" not in headers and "tracestate" not in headers and "baggage" not in headers:
        return {}
    return {name: headers[name] for name in HEADERS if name in headers}


def outgoing() -> dict[str, str]:
    """Headers for a request that this code makes now: OpenTelemetry's current span, else the trace it was entered with.

    Empty outside of any trace. Whatever propagators the program has set up write what they write.
    """
    inherited = dict(_inbound.get({}))
    if _opentelemetry():
        from opentelemetry import propagate  # noqa: PLC0415 - as above

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        # A span of another trace must not be mixed with the state of the one that came in.
        return carrier if "traceparent" in carrier else inherited | carrier
    return inherited


def continued(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers` of a request with the trace context of this code, unless they have a `traceparent` of their own."""
    names = {name.lower() for name in headers}
    if "traceparent" in names:
        return dict(headers)
    return {name: value for name, value in outgoing().items() if name not in names} | dict(headers)


def _opentelemetry() -> bool:
    return "opentelemetry.trace" in sys.modules
