"""The history of an operation: what can stand in it, how it is packed, how it reads as JSON.

Owns the codes, the detail field of each kind and the CloudEvents types; specs/events.schema.json is
generated from here. Knows nothing of when an event happens: that is the store's transition, in step with
mesh/machine.py.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, Protocol

from mesh.clock import to_rfc3339
from mesh.machine import BLOCKED_REASONS


class EventKind(IntEnum):
    """Kinds of history events. The numbers are stored; never reuse one."""

    ACCEPTED = 1
    DISPATCHED = 2
    BLOCKED = 3
    STARTED = 4
    ATTEMPT_FAILED = 5
    """The attempt failed in a way worth repeating."""
    ATTEMPT_LOST = 6
    """The holder of the attempt went silent: heartbeat, lease of the request, or the gateway itself."""
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
    RELEASED = 30
    """Whoever fetched the attempt gave it back; it counts against nothing."""
    SUSPENDED = 18
    """The handler waits for a time or a child, and no attempt is out."""
    REFUSED = 19
    """A step or an outcome of an attempt that was given up; nothing of it was taken."""

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

_ERROR: Final = ("error", {"type": "string", "description": "what went wrong, one line"})


def _reason(*words: str) -> tuple[str, dict[str, Any]]:
    return "reason", {"type": "string", **({"enum": list(words)} if words else {})}


DETAIL: Final[dict[EventKind, tuple[str, dict[str, Any]]]] = {
    EventKind.BLOCKED: _reason(*BLOCKED_REASONS),
    EventKind.ATTEMPT_FAILED: _ERROR,
    EventKind.ATTEMPT_LOST: _reason("heartbeat", "request_lease", "gateway"),
    EventKind.CANCEL_FAILED: _ERROR,
    EventKind.FAILED: _reason(),
    EventKind.CANCELED: _reason(),
    EventKind.TIMED_OUT: _reason("schedule_to_close", "schedule_to_start", "start_to_close"),
    EventKind.CALLBACK_FAILED: _ERROR,
    EventKind.CALLBACK_DEAD: _ERROR,
    EventKind.RELEASED: _reason(),
    EventKind.REDELIVERED: ("delivery", {"type": "string", "enum": ["cancel", "callback"]}),
    EventKind.SUSPENDED: (
        "until",
        {"type": "string", "format": "date-time", "description": "absent: a child wakes it"},
    ),
    EventKind.REFUSED: ("verb", {"type": "string", "description": "what it tried"}),
}
"""Kind -> the name its one detail has in JSON, and that field's JSON Schema. Any event may come without."""

ANSWERS: Final = frozenset(
    {EventKind.STARTED, EventKind.ATTEMPT_FAILED, EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELED}
)
"""Kinds that may be the answer of an instance to a start, and then name it."""

# By plain number: an enum lookup would cost as much as the rest of `to_json`.
_WORD_OF_CODE: Final[dict[int, str]] = {kind.value: word for kind, word in _WORDS.items()}
_FIELD_OF_CODE: Final[dict[int, str]] = {kind.value: field for kind, (field, _) in DETAIL.items()}


class Entry(Protocol):
    """As stored, a msgpack array `[code, after_ms, attempt, detail?, journal?, instance?]`; ms since acceptance."""

    @property
    def code(self) -> int: ...
    @property
    def after_ms(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def detail(self) -> Any: ...
    @property
    def instance(self) -> str: ...


_ANY: Final[dict[str, Any]] = {}
_NAME: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 1, "description": "occurrence of the name, from 1"}
ENTRIES: Final[dict[str, dict[str, Any]]] = {
    "step": {"name": _NAME, "n": _COUNT, "result": _ANY, "error": _ANY, "tries": {"type": "integer"}},
    "call": {"name": _NAME, "n": _COUNT, "id": {"type": "string", "description": "the child"}},
    "child": {
        "key": {"type": "string", "description": "what the journal calls the child"},
        "id": _NAME,
        "state": {"type": "string"},
        "result": _ANY,
        "failure": _ANY,
    },
    "timer": {"name": _NAME, "n": _COUNT, "until_ms": {"type": "integer"}},
    "fired": {"name": _NAME, "n": _COUNT},
    "value": {"name": _NAME, "n": _COUNT, "value": _ANY},
    "try": {"name": _NAME, "n": _COUNT, "tries": {"type": "integer"}, "error": _ANY},
    "gathering": {"name": _NAME, "n": _COUNT, "until_ms": {"type": "integer"}},
    "gather": {"name": _NAME, "n": _COUNT, "sources": _ANY},
    "emitted": {"n": {"type": "integer"}, "length": {"type": "integer"}},
    "progress": {"message": {"type": "string"}, "percent": {"type": "number"}, "data": _ANY},
}
"""Journal entries that the SDK and the store write: kind -> JSON Schema of what they may have. Other kinds are shown as
they are. Of a long value `{name}_preview` and `{name}_bytes` stand in its place."""


OTHER_KIND: Final[dict[str, Any]] = {
    "type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$", "not": {"enum": [*_WORDS.values(), *ENTRIES]}
}  # fmt: skip


def entry_json(
    operation_id: str, seq: int, at_ms: int, attempt: int, kind: str, fields: dict[str, Any]
) -> dict[str, Any]:
    """A journal entry as an event: as `to_json`, its `kind` as the type, with its own fields."""
    event: dict[str, Any] = {
        "seq": seq, "at": to_rfc3339(at_ms), "type": kind, "operation_id": operation_id, "attempt": attempt
    }  # fmt: skip
    return event | fields


def to_json(operation_id: str, seq: int, created_at_ms: int, packed: Entry) -> dict[str, Any]:
    """`{seq, at, type, operation_id, attempt}`, the kind's detail, and `instance` where one answered; /v1 and SSE.

    `seq` counts 1..n per operation, `at` is RFC 3339. During a rolling upgrade a newer gateway may have
    written a code that is unknown here; it reads `event_{code}`.
    """
    code = packed.code
    event: dict[str, Any] = {
        "seq": seq,
        "at": to_rfc3339(created_at_ms + packed.after_ms),
        "type": _WORD_OF_CODE.get(code) or f"event_{code}",
        "operation_id": operation_id,
        "attempt": packed.attempt,
    }
    detail = packed.detail
    if detail is not None and detail is not False:
        event[_FIELD_OF_CODE.get(code, "detail")] = to_rfc3339(detail) if code == EventKind.SUSPENDED else detail
    if packed.instance:
        event["instance"] = packed.instance
    return event


def schema() -> dict[str, Any]:
    """specs/events.schema.json: JSON Schema 2020-12 of `to_json`; a test compares the file with this."""
    fixed: dict[str, Any] = {
        "seq": {"type": "integer", "minimum": 1, "description": "1..n per operation, without gaps"},
        "at": {"type": "string", "format": "date-time"},
        "operation_id": {"type": "string"},
        "attempt": {"type": "integer", "minimum": 0, "description": "0 before the first dispatch"},
    }
    instance = {"instance": {"type": "string", "description": "the one whose answer it was"}}

    def shape(title: str, word: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        return {
            "title": title,
            "type": "object",
            "required": [*fixed, "type"],
            "properties": fixed | {"type": word} | more,
        }

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event of an operation's history",
        "description": "Generated from mesh/events.py; do not edit. CloudEvents carry it as data.",
        "oneOf": [
            *[
                shape(
                    kind.cloud_type,
                    {"const": word},
                    dict([DETAIL[kind]] if kind in DETAIL else []) | (instance if kind in ANSWERS else {}),
                )
                for kind, word in _WORDS.items()
            ],
            *[shape(f"journal entry: {kind}", {"const": kind}, fields) for kind, fields in ENTRIES.items()],
            shape("journal entry of another kind", OTHER_KIND, {}),
        ],
    }
