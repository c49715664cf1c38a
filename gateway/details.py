"""What a look at one operation tells beside its record: where its attempts went and failed, and the callback. Pure.

All of it is read off the history, so lists of operations and callbacks do without. Knows no store and no HTTP.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.clock import to_rfc3339
from mesh.events import EventKind
from mesh.machine import Delivery, Kind
from mesh.store.layout import Entry, decode_events
from mesh.store.verbs import Record

_LOST: Final = {
    "heartbeat": "no heartbeat within its lease",
    "request_lease": "no answer within the lease of its request",
    "gateway": "the gateway that had sent it died",
}
_FAILURES: Final = (EventKind.ATTEMPT_FAILED, EventKind.ATTEMPT_LOST)
_TROUBLE: Final = {
    Kind.CALLBACK: (EventKind.CALLBACK_FAILED, EventKind.CALLBACK_DEAD),
    Kind.CANCEL: (EventKind.CANCEL_FAILED,),
}
"""What the history says of a delivery's tries; of a cancel's, only the last one's."""
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


def trouble_of(record: Record, kind: Kind, state: Delivery) -> str | None:
    """Why a delivery that is not through is dead or was not taken so far; None where nothing is known against it."""
    if state not in (Delivery.DUE, Delivery.LEASED, Delivery.DEAD) or kind not in _TROUBLE:
        return None
    # A page of records is read with its events packed: the few that need a look are unpacked here.
    trouble = _newest(record.events or decode_events(record.head), *_TROUBLE[kind])
    return None if trouble is None else str(trouble.detail or "")


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
    why = trouble_of(record, Kind.CALLBACK, state)
    if why is not None:
        callback["why"] = why
    if state is Delivery.DUE:
        callback["next_at"] = to_rfc3339(head.callback_at)
    return callback
