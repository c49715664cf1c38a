"""What a look at one operation tells beside its record: where its attempts went and failed, and the callback. Pure.

All of it is read off the history, so lists and callbacks do without. Knows no store and no HTTP.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.clock import to_rfc3339
from mesh.events import EventKind
from mesh.machine import Delivery
from mesh.store.layout import Entry
from mesh.store.verbs import Record

_LOST: Final = {
    "heartbeat": "no heartbeat within its lease",
    "request_lease": "no answer within the lease of its request",
    "gateway": "the gateway that had sent it died",
}
_FAILURES: Final = (EventKind.ATTEMPT_FAILED, EventKind.ATTEMPT_LOST)
_CALLBACK_TROUBLE: Final = (EventKind.CALLBACK_FAILED, EventKind.CALLBACK_DEAD)
SPARED: Final = "the first request was answered with the outcome"


def details(record: Record, sent_to: str = "") -> dict[str, Any]:
    """Fields `instance`, `last_failure`, `callback` of `GET /v1/operations/{id}`, each where there is one.

    `sent_to`: the instance that this gateway waits for at this moment. While another gateway does, nobody can say.
    """
    found: dict[str, Any] = {}
    instance = sent_to or _instance(record)
    if instance:
        found["instance"] = instance
    failure = None if record.state.terminal else _newest(record.events, *_FAILURES)
    if failure is not None:
        found["last_failure"] = _failure(record, failure)
    if record.request.callback_url:
        found["callback"] = _callback(record)
    return found


def _newest(entries: list[Entry], *kinds: EventKind) -> Entry | None:
    return next((one for one in reversed(entries) if one.code in kinds), None)


def _instance(record: Record) -> str:
    attempt = record.head.attempt
    return next((one.instance for one in reversed(record.events) if one.instance and one.attempt == attempt), "")


def _failure(record: Record, entry: Entry) -> dict[str, Any]:
    said = str(entry.detail or "")
    if entry.code == EventKind.ATTEMPT_LOST:
        kind, message = "ATTEMPT_LOST", _LOST.get(said, said)
    else:
        kind, _, message = said.partition(": ")
    failure: dict[str, Any] = {
        "attempt": entry.attempt,
        "type": kind,
        "message": message,
        "at": to_rfc3339(record.head.created_at + entry.after_ms),
    }
    if entry.instance:
        failure["instance"] = entry.instance
    return failure


def _callback(record: Record) -> dict[str, Any]:
    """`state` in the words of deliveries, and `why` where the word alone leaves one wondering."""
    head, request = record.head, record.request
    state = Delivery(head.callback)
    callback: dict[str, Any] = {"url": request.callback_url, "format": request.callback_format, "state": state.word}
    if state is Delivery.NONE:
        callback["why"] = "it is owed once the operation ends"
    elif state is Delivery.DROPPED:
        callback["why"] = SPARED
    else:
        callback["tries"] = head.callback_tries
    trouble = _newest(record.events, *_CALLBACK_TROUBLE)
    if trouble is not None and state in (Delivery.DUE, Delivery.LEASED, Delivery.DEAD):
        callback["why"] = str(trouble.detail or "")
    if state is Delivery.DUE:
        callback["next_at"] = to_rfc3339(head.callback_at)
    return callback
