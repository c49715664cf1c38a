"""How an outcome looks to a caller: Nexus answers, Nexus failures, callback bodies and the fields of a /v1 record.

The stored form is mesh.store.layout.Outcome; this file is the only one that turns it into words. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.payloads import dataref
from mesh.clock import to_rfc3339
from mesh.edge import Answer, Headers
from mesh.machine import STATES, State
from mesh.store.layout import Head, Line, Outcome, Request
from mesh.wire import failure_json, handler_failure, operation_failure, parse_links, readable_json
from mesh.wire.headers import is_json_type
from registry.choice import CANARY

if TYPE_CHECKING:
    from gateway.orders import Known
    from mesh.store.verbs import Record

_REASONS: Final = {
    "schedule_to_close": "the operation did not end within its schedule-to-close timeout",
    "schedule_to_start": "the operation did not start within its schedule-to-start timeout",
    "start_to_close": "the operation did not end within its start-to-close timeout",
    "attempts_exhausted": "no attempt was left after failures worth repeating",
    "endpoint_deleted": "its endpoint was deleted and has not come back",
    "canceled_before_start": "the caller canceled the operation before it ran",
    "canceled_waiting": "the caller canceled the operation, and its handler waited for nothing that could come",
    "result_too_large": "the handler's answer was larger than this gateway takes",
    "request_invalid": "the request cannot be carried by HTTP: a header name or value is not legal",
    "token_too_long": "the handler's operation token is longer than 4096 bytes",
}
_SUCCEEDED: Final = State.SUCCEEDED
_WORDS: Final = {state: state.word for state in State}
_BACKING_OFF: Final = State.BACKING_OFF
_TRACE: Final = frozenset({b"traceparent", b"tracestate", b"baggage"})
_JSON: Final = (b"content-type", b"application/json")
GATEWAY: Final = (b"mesh-failure-source", b"gateway")


def failure_of(state: State, outcome: Outcome) -> dict[str, Any]:
    """The OperationError failure of an operation that did not succeed (P12)."""
    word = "canceled" if state is State.CANCELED else "failed"
    if outcome.kind == "failure":
        return msgspec.json.decode(outcome.body)
    if outcome.kind == "handler_error":
        return operation_failure(word, "the handler refused the operation", cause=msgspec.json.decode(outcome.body))
    message = _REASONS.get(outcome.reason, outcome.reason)
    cause: dict[str, Any] | None = msgspec.json.decode(outcome.body) if outcome.body else None
    if state is State.TIMED_OUT:
        cause = handler_failure("UPSTREAM_TIMEOUT", message, retryable=False, metadata={"timeout": outcome.reason})
        message = "operation timed out"
    return operation_failure(word, message, cause=cause, metadata={"reason": outcome.reason})


def all_links(started: Sequence[str], outcome: Outcome) -> Headers:
    """The agent's links as headers, each once: those of its 201, then those of its outcome."""
    if not started:
        return [(b"nexus-link", one.encode("latin-1")) for one in outcome.links]
    return [(b"nexus-link", one.encode("latin-1")) for one in dict.fromkeys((*started, *outcome.links))]


def nexus_answer(
    operation_id: str, state: State, outcome: Outcome, link: bytes, started: Sequence[str], *, first: bool
) -> Answer:
    """200 with the result's own bytes and type, or 424; `started` are the links of the agent's 201.

    Within the wait of a start a handler's refusal passes untouched (P13), and so it does for repeats of it.
    """
    headers: Headers = [(b"mesh-operation-id", operation_id.encode())]
    if state is _SUCCEEDED:
        headers.append((b"nexus-operation-state", b"succeeded"))
        if outcome.content_type is not None:
            headers.append((b"content-type", outcome.content_type.encode("latin-1")))
        headers.append((b"nexus-link", link))
        if started or outcome.links:
            headers += all_links(started, outcome)
        return Answer(200, headers, outcome.body)
    if outcome.kind == "handler_error" and first:
        return Answer(outcome.status, headers + outcome.headers, _own_body(outcome))
    headers += [_JSON, (b"nexus-operation-state", b"canceled" if state is State.CANCELED else b"failed")]
    headers.append((b"nexus-link", link))
    headers += all_links(started, outcome)
    if outcome.kind == "mesh":
        headers.append(GATEWAY)
    return Answer(424, headers, failure_json(failure_of(state, outcome)))


def running_answer(operation_id: str, link: bytes, started: Sequence[str], told: Headers) -> Answer:
    """201 with the token of an operation that goes on; `told`: how it was accepted."""
    operation = operation_id.encode()
    headers = [
        _JSON,
        (b"mesh-operation-id", operation),
        (b"nexus-link", link),
        *[(b"nexus-link", one.encode("latin-1")) for one in started],
        *told,
    ]
    return Answer(201, headers, b'{"token":"%b","state":"running"}' % operation)


def _own_body(outcome: Outcome) -> bytes:
    """A handler error as it came: `original`, unless the failure in `body` was all of it already."""
    if outcome.original:
        return outcome.original
    kind = next((value for name, value in outcome.headers if name == b"content-type"), None)
    return outcome.body if is_json_type(kind) else b""


def callback_parts(head: Head, outcome: Outcome) -> tuple[bytes, bytes | None]:
    """Body and content type of a Nexus completion callback."""
    state = State(head.state)
    if state is State.SUCCEEDED:
        return outcome.body, outcome.content_type.encode("latin-1") if outcome.content_type is not None else None
    return failure_json(failure_of(state, outcome)), b"application/json"


def result_fields(operation_id: str, state: State, outcome: Outcome | None) -> dict[str, Any]:
    """`result` (JSON), `result_base64`, `result_dataref` or `failure`; nothing while it runs (P65, P392)."""
    if outcome is None:
        return {}
    if state is not _SUCCEEDED:
        return {"failure": failure_of(state, outcome)}
    if outcome.data is not None:
        url = f"/v1/operations/{operation_id}/result"
        return {"result_dataref": dataref(url, outcome.data, outcome.content_type)}
    if outcome.content_type is None and not outcome.body:
        return {"result": None}
    kind = outcome.content_type
    labelled = kind == "application/json" or (kind is not None and is_json_type(kind.encode("latin-1")))
    # Of more levels than a reader's stack it would spoil whatever it is shown in: a parent's journal.
    if labelled and readable_json(outcome.body):
        return {"result": msgspec.Raw(outcome.body)}
    return {"result_base64": outcome.body, "result_type": outcome.content_type}


def known_fields(known: Known | Record) -> dict[str, Any]:
    """The record of what is known."""
    return record_fields(known.id, known.head, known.request, known.outcome, known.journal, known.beat, known.links)


def record_fields(
    operation_id: str,
    head: Head,
    request: Request,
    outcome: Outcome | None,
    journal: int = 0,
    beat: Line | None = None,
    started: Sequence[str] = (),
) -> dict[str, Any]:
    """The flat /v1 record (P65), ready for `encode_json`.

    `journal` entries stand among its events, `started` are the links of the agent's 201.
    """
    state = STATES[head.state]
    updated = to_rfc3339(head.created_at + head.stamp)
    # Nearly always its end was the last that happened to it.
    ended = updated if head.closed_at == head.created_at + head.stamp else to_rfc3339(head.closed_at)
    record: dict[str, Any] = {
        "id": operation_id,
        "state": _WORDS[state],
        "run": head.run,
        "attempt": head.attempt,
        "endpoint": request.endpoint,
        "service": request.service,
        "operation": request.operation,
        "namespace": head.namespace,
        "labels": request.labels,
        "created_at": to_rfc3339(head.created_at),
        "updated_at": updated,
        "closed_at": ended if head.closed_at else None,
        "deadline": to_rfc3339(head.close_by) if head.close_by else None,
        "events": head.seq + journal,
    }
    if head.parent or head.journal or beat is not None:
        record |= durable_fields(head, journal, beat)
    if head.delay_ms:
        record["starts_at"] = to_rfc3339(head.created_at + head.delay_ms)
    if head.blocked or head.pin or head.priority:
        record |= waiting_fields(head)
    if head.cancel_asked:
        record["cancel_requested"] = True
    if state is _BACKING_OFF:
        record["next_attempt_at"] = to_rfc3339(head.start_at)
    if request.idempotency_key:
        record["idempotency_key"] = request.idempotency_key
    if request.links or started or (outcome is not None and outcome.links):
        record["links"] = _shown_links(request, started, outcome)
    if request.headers and (trace := trace_headers(request)):
        record["trace"] = {name.decode(): value.decode("latin-1") for name, value in trace}
    if request.data is not None:
        record["input_dataref"] = dataref(f"/v1/operations/{operation_id}/input", request.data, request.content_type)
    record |= result_fields(operation_id, state, outcome)
    return record


def waiting_fields(head: Head) -> dict[str, Any]:
    """What it waits for, how urgent it is; which version must run it, or which instance it is a canary of."""
    fields: dict[str, Any] = {"blocked": head.blocked} if head.blocked else {}
    if head.priority:
        fields["priority"] = head.priority
    if not head.pin:
        return fields
    if head.pin[0] == CANARY:
        return fields | {"canary": {"instance": head.pin[1:]}}
    fields["version"] = head.pin[1:]
    if head.blocked == "no_version":
        fields["blocked_why"] = f"no live instance of version {head.pin[1:]!r} takes work; it goes out when one does"
    return fields


def durable_fields(head: Head, journal: int, beat: Line | None) -> dict[str, Any]:
    """What a record says of a child, of work that keeps a journal, and of a heartbeat with details."""
    fields: dict[str, Any] = {}
    if head.parent:
        fields |= {"parent": head.parent.partition(".")[0], "parent_key": head.parent_key}
    if head.journal:
        fields["journal"] = journal
    if head.suspended and head.state == State.STARTED:
        fields["suspended"] = {
            "since": to_rfc3339(head.suspended),
            "until": to_rfc3339(head.start_at) if head.start_at else None,
        }
    if beat is not None:
        fields["heartbeat"] = {"at": to_rfc3339(head.created_at + beat.after_ms), "details": msgspec.Raw(beat.body)}
    return fields


def _shown_links(request: Request, started: Sequence[str], outcome: Outcome | None) -> list[dict[str, str]]:
    """Each link with who gave it."""
    told = outcome.links if outcome is not None else ()
    agent = dict.fromkeys((*started, *told))
    given = [("caller", request.links), ("agent", agent)]
    return [
        {"url": link.url, "type": link.type, "by": by} for by, texts in given if texts for link in parse_links(texts)
    ]


def trace_headers(request: Request) -> Headers:
    """W3C Trace Context and Baggage of the start: sent on with every attempt, cancel and callback."""
    return [one for one in request.headers if one[0] in _TRACE]


encode_json: Final = msgspec.json.Encoder().encode
