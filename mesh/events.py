"""The history of an operation: what can stand in it, how it is packed, how it reads as JSON.

Owns the codes, the detail fields of each kind and the CloudEvents types; specs/events.schema.json is
generated from here. Knows nothing of when an event happens: that is the store's transition, in step with
mesh/machine.py.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol, cast

from mesh.clock import to_rfc3339
from mesh.machine import BLOCKED_REASONS


class EventKind(IntEnum):
    """Kinds of history events. The numbers are stored; never reuse one."""

    ACCEPTED = 1
    DISPATCHED = 2
    BLOCKED = 3
    STARTED = 4
    ATTEMPT_FAILED = 5
    """The attempt failed and another follows after `retry_in_ms`."""
    ATTEMPT_LOST = 6
    """The holder of the attempt went silent: its heartbeat, its request's lease or its gateway."""
    CANCEL_REQUESTED = 7
    CANCEL_DELIVERED = 8
    CANCEL_FAILED = 9
    SUCCEEDED = 10
    FAILED = 11
    CANCELED = 12
    TIMED_OUT = 13
    CALLBACK_DELIVERED = 14
    CALLBACK_FAILED = 15
    CALLBACK_DEAD = 16
    REDELIVERED = 17

    @property
    def word(self) -> str:
        """The `type` in JSON: `attempt_failed`."""
        return _WORDS[self]

    @property
    def terminal(self) -> bool:
        """Whether the operation ends with it; deliveries may still follow."""
        return EventKind.SUCCEEDED <= self <= EventKind.TIMED_OUT

    @property
    def cloud_type(self) -> str:
        """The CloudEvents `type`: `mesh.operation.attempt_failed.v1`."""
        return CLOUD_TYPES[self]


_WORDS: Final = {kind: kind.name.lower() for kind in EventKind}

CLOUD_TYPES: Final = {kind: f"mesh.operation.{word}.v1" for kind, word in _WORDS.items()}
OPERATION_SUCCEEDED: Final = CLOUD_TYPES[EventKind.SUCCEEDED]
OPERATION_FAILED: Final = CLOUD_TYPES[EventKind.FAILED]
OPERATION_CANCELED: Final = CLOUD_TYPES[EventKind.CANCELED]
OPERATION_TIMED_OUT: Final = CLOUD_TYPES[EventKind.TIMED_OUT]

_TEXT: Final = {"type": "string"}
_MS: Final = {"type": "integer", "minimum": 0}
_ERROR: Final = {"error": {"type": "string", "description": "what went wrong, one line"}}
_RETRY: Final = {"retry_in_ms": _MS}

DETAIL: Final[dict[EventKind, dict[str, dict[str, Any]]]] = {
    EventKind.ACCEPTED: {},
    EventKind.DISPATCHED: {"instance": _TEXT},
    EventKind.BLOCKED: {"reason": {"type": "string", "enum": list(BLOCKED_REASONS)}},
    EventKind.STARTED: {},
    EventKind.ATTEMPT_FAILED: _ERROR | _RETRY,
    EventKind.ATTEMPT_LOST: {"reason": _TEXT},
    EventKind.CANCEL_REQUESTED: {},
    EventKind.CANCEL_DELIVERED: {},
    EventKind.CANCEL_FAILED: _ERROR | _RETRY,
    EventKind.SUCCEEDED: {},
    EventKind.FAILED: {"reason": _TEXT},
    EventKind.CANCELED: {"reason": _TEXT},
    EventKind.TIMED_OUT: {"reason": {"type": "string", "description": "which timeout"}},
    EventKind.CALLBACK_DELIVERED: {},
    EventKind.CALLBACK_FAILED: _ERROR | _RETRY,
    EventKind.CALLBACK_DEAD: {"reason": _TEXT},
    EventKind.REDELIVERED: {"delivery": {"type": "string", "description": "kind of the delivery"}},
}
"""Kind -> detail fields in packed order, each with its JSON Schema; every one may be absent."""


class Entry(Protocol):
    """One event as stored: `[code, after_ms, attempt, detail?]`, milliseconds since acceptance."""

    @property
    def code(self) -> int: ...
    @property
    def after_ms(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def detail(self) -> Any: ...


class Packed(NamedTuple):
    """An Entry made from a bare array: `Packed(*array)`."""

    code: int
    after_ms: int
    attempt: int
    detail: Any = None


def _detail(kind: EventKind, detail: Any) -> dict[str, Any]:
    """Absent, a map by field name, an array in the order of DETAIL, or a lone first field."""
    if detail is None:
        return {}
    if isinstance(detail, dict):
        return {key: value for key, value in cast("dict[str, Any]", detail).items() if key not in _FIXED}
    values = cast("list[Any]", detail) if isinstance(detail, list | tuple) else [detail]
    return {name: value for name, value in zip(DETAIL[kind], values, strict=False) if value is not None}


_FIXED: Final = ("seq", "at", "type", "operation_id", "attempt")


def to_json(operation_id: str, seq: int, created_at_ms: int, packed: Entry) -> dict[str, Any]:
    """`{seq, at, type, operation_id, attempt, ...detail}`: the event on /v1, in SSE and as CloudEvents data.

    `seq` counts 1..n per operation, `at` is RFC 3339. Raises ValueError on a code this version does not know.
    """
    kind = EventKind(packed.code)
    return {
        "seq": seq,
        "at": to_rfc3339(created_at_ms + packed.after_ms),
        "type": _WORDS[kind],
        "operation_id": operation_id,
        "attempt": packed.attempt,
        **_detail(kind, packed.detail),
    }


def schema() -> dict[str, Any]:
    """specs/events.schema.json: JSON Schema 2020-12 of `to_json`; a test compares the file with this."""
    fixed: dict[str, Any] = {
        "seq": {"type": "integer", "minimum": 1, "description": "1..n per operation, without gaps"},
        "at": {"type": "string", "format": "date-time"},
        "operation_id": _TEXT,
        "attempt": {"type": "integer", "minimum": 0, "description": "0 before the first dispatch"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event of an operation's history",
        "description": "Generated from mesh/events.py; do not edit. CloudEvents carry it as data.",
        "type": "object",
        "required": list(_FIXED),
        "oneOf": [
            {
                "title": kind.cloud_type,
                "properties": {**fixed, "type": {"const": word}, **DETAIL[kind]},
                "unevaluatedProperties": False,
            }
            for kind, word in _WORDS.items()
        ],
    }
