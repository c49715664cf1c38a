"""openapi.json: what FastAPI derives from the routes, with the errors, shapes and keys that all of them share.

`python -m gateway.openapi > specs/openapi.json` writes the file that a test compares. Pure; knows no operation.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.declared import FAILURE, schema
from gateway.pull.frames import AnswersBody, FrameBody, PollBody, StatusesBody
from gateway.schedules.spec import ScheduleBody
from gateway.schedules.surface import BackfillBody
from gateway.start_body import StartBody
from gateway.tasks_body import (
    EmitBody,
    EmitTask,
    HeartbeatBody,
    HeartbeatTask,
    JournalBody,
    JournalTask,
    ReadBody,
    ReadTask,
    SuspendBody,
    SuspendTask,
)
from mesh.machine import BLOCKED_REASONS, Delivery, State

_REF: Final = "#/components/schemas/{name}"
_OPEN: Final = (
    "/healthz", "/readyz", "/metrics", "/nexus/callback",
    *[f"/v1/tasks/{verb}" for verb in ("heartbeat", "journal", "emit", "suspend", "read", "blobs")],
    *[f"/v1/tasks/{verb}" for verb in ("complete", "fail", "release")],
)  # fmt: skip
"""Routes that ask for no key: the token is the proof, or there is nothing to protect."""
_PROBLEM: Final = schema("Problem", "application/problem+json")
_TIME: Final = {"type": "string", "format": "date-time"}
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_BREAKER: Final = {"type": "string", "enum": ["closed", "half_open", "open"]}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _or_null(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "null"}]}


def _statuses(*more: str) -> dict[str, Any]:
    return {"type": "string", "enum": ["ok", *more, "lost", "ended", "unknown", "invalid"]}


def _many(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": _REF.format(name=name)}}


SHAPES: Final[dict[str, Any]] = {
    "Problem": _object(
        "type title status detail code retryable",
        type=_TEXT,
        title=_TEXT,
        status={"type": "integer"},
        detail=_TEXT,
        code={"type": "string", "description": "a stable word"},
        retryable={"type": "boolean"},
        operation_id=_TEXT,
        errors={
            "type": "array",
            "items": _object(
                "detail",
                pointer=_TEXT,
                parameter=_TEXT,
                detail=_TEXT,
                code=_TEXT,
                service=_TEXT,
                operation=_TEXT,
                callers={"type": "array", "items": _object("namespace last_seen", namespace=_TEXT, last_seen=_TIME)},
            ),
        },
    )
    | {"description": "RFC 9457; `pointer` is RFC 6901, into the body"},
    "Failure": _object(
        "message",
        message=_TEXT,
        stackTrace=_TEXT,
        metadata={"type": "object", "additionalProperties": _TEXT},
        details={},
        cause={"$ref": _REF.format(name="Failure")},
    )
    | {"description": "Nexus Failure: an OperationError, or with other statuses a HandlerError"},
    "Started": _object("token state", token=_TEXT, state=_TEXT),
    "Record": _object(
        "id state run attempt endpoint service operation namespace labels created_at updated_at closed_at deadline"
        " events",
        id=_TEXT,
        state={"type": "string", "enum": [state.word for state in State]},
        run=_COUNT,
        attempt=_COUNT,
        endpoint=_TEXT,
        service=_TEXT,
        operation=_TEXT,
        namespace=_TEXT,
        labels={"type": "object", "additionalProperties": _TEXT},
        created_at=_TIME,
        updated_at=_TIME,
        closed_at=_or_null(_TIME),
        deadline=_or_null(_TIME),
        events={**_COUNT, "description": "how many, which is the last one's sequence number"},
        parent={"type": "string", "description": "the operation whose handler started it"},
        parent_key=_TEXT,
        journal={**_COUNT, "description": "entries of its journal, which stand among its events"},
        suspended=_object("since until", since=_TIME, until=_or_null(_TIME)),
        heartbeat=_object("at details", at=_TIME, details={}),
        starts_at={**_TIME, "description": "of one that was to begin later"},
        blocked={"type": "string", "enum": list(BLOCKED_REASONS)},
        cancel_requested={"type": "boolean"},
        next_attempt_at=_TIME,
        instance={**_TEXT, "description": "that had the last attempt; `GET /v1/operations/{id}` only, as the next two"},
        last_failure=_object(
            "attempt type message at", attempt=_COUNT, type=_TEXT, message=_TEXT, at=_TIME, instance=_TEXT
        ),
        callback=_object(
            "url format state",
            url=_TEXT,
            format=_TEXT,
            state={"type": "string", "enum": [state.word for state in Delivery]},
            tries=_COUNT,
            next_at=_TIME,
            why=_TEXT,
        ),
        idempotency_key=_TEXT,
        links={
            "type": "array",
            "items": _object("url type by", url=_TEXT, type=_TEXT, by={"type": "string", "enum": ["caller", "agent"]}),
        },
        trace={
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "traceparent, tracestate and baggage of the start, as far as it had them",
        },
        result={"description": "the result, where it is JSON"},
        result_base64={"type": "string", "format": "byte"},
        result_type=_or_null(_TEXT),
        input_dataref={"$ref": _REF.format(name="DataRef")},
        result_dataref={"$ref": _REF.format(name="DataRef")},
        failure={"$ref": _REF.format(name="Failure")},
    ),
    "DataRef": _object(
        "url digest bytes content_type",
        url={**_TEXT, "description": "where it is, on any gateway"},
        digest={**_TEXT, "description": "`sha-256=:...:` as in RFC 9530"},
        bytes=_COUNT,
        content_type=_or_null(_TEXT),
    )
    | {"description": "a large input or result, kept outside the record"},
    "Queue": _object(
        "endpoint at waiting oldest_waiting_ms running paused limits namespaces breaker instances",
        endpoint=_TEXT,
        at={**_TIME, "description": "when the store was asked"},
        waiting={**_COUNT, "description": "operations in line, of all namespaces"},
        oldest_waiting_ms={**_COUNT, "description": "age of what waits longest, 0 for nobody"},
        running={**_COUNT, "description": "operations that a limit counts, or would"},
        paused={"type": "boolean"},
        limits=_object(
            "max_concurrency rate_per_s max_waiting namespaces",
            max_concurrency=_or_null(_COUNT),
            rate_per_s=_or_null({"type": "number"}),
            max_waiting=_or_null(_COUNT),
            namespaces={
                "type": "object",
                "additionalProperties": {"$ref": _REF.format(name="NamespaceLimits")},
                "description": "what was registered of each, `*` for all others; a caller sees its own",
            },
        ),
        namespaces={
            "type": "array",
            "description": "who waits or runs; a caller sees itself",
            "items": _object(
                "namespace waiting next_waiting_ms running at_own_limit weight",
                namespace=_TEXT,
                waiting=_COUNT,
                next_waiting_ms={**_COUNT, "description": "age of its operation that is next, 0 for none"},
                running=_COUNT,
                at_own_limit={"type": "boolean"},
                rate_per_s=_or_null({"type": "number"}),
                max_concurrency=_or_null(_COUNT),
                weight=_COUNT,
                max_waiting=_or_null(_COUNT),
            ),
        },
        breaker=_object("state failures", state=_BREAKER, failures=_COUNT, retry_at=_TIME),
        instances={
            "type": "array",
            "items": _object("id breaker in_flight", id=_TEXT, breaker=_BREAKER, in_flight=_COUNT, retry_at=_TIME),
        },
    ),
    "Schedule": _object(
        "name id namespace version cron timezone overlap catch_up_ms jitter_ms operation paused next_at upcoming queued"
        " counts last_run",
        name=_TEXT,
        id=_TEXT,
        namespace=_TEXT,
        version=_COUNT,
        description=_TEXT,
        cron=_TEXT,
        timezone=_TEXT,
        overlap={"type": "string", "enum": ["skip", "queue", "allow", "cancel_previous"]},
        catch_up_ms=_COUNT,
        jitter_ms=_COUNT,
        operation={"type": "object", "description": "the fields that were given of a StartBody"},
        paused={"type": "boolean"},
        created_at=_TIME,
        updated_at=_TIME,
        next_at=_or_null(_TIME),
        upcoming={"type": "array", "items": _TIME},
        queued={**_COUNT, "description": "times that wait for their turn"},
        counts=_object("started skipped missed failed", started=_COUNT, skipped=_COUNT, missed=_COUNT, failed=_COUNT),
        last_run=_or_null(
            _object("operation_id scheduled_at", operation_id=_TEXT, scheduled_at=_TIME, state=_or_null(_TEXT))
        ),
        last_skipped_at=_or_null(_TIME),
        last_missed=_or_null(_object("from until", **{"from": _TIME, "until": _TIME, "code": _TEXT})),
        last_failure=_or_null(
            _object("at status code detail", at=_TIME, status=_COUNT, code=_TEXT, detail=_TEXT)
        ),
    ),
    "HeartbeatAnswer": _object("status", status=_statuses("cancel")),
    "Heartbeats": _object("tasks", tasks=_many("HeartbeatAnswer")),
    "StepAnswer": _object(
        "status length",
        now_ms=_COUNT,
        status=_statuses("grown", "full"),
        length={**_COUNT, "description": "elements, the new ones included"},
        cancel={"type": "boolean", "description": "its end is wanted"},
    ),
    "Steps": _object("now_ms tasks", now_ms={**_COUNT, "description": "the store's clock"}, tasks=_many("StepAnswer")),
    "JournalAnswer": _object(
        "status entries length stream cancel",
        now=_TIME,
        now_ms=_COUNT,
        status=_statuses(),
        entries={"type": "array", "items": {"type": "object"}},
        length=_COUNT,
        stream={**_COUNT, "description": "chunks in its stream"},
        cancel={"type": "boolean"},
    ),
    "Journals": _object("now_ms tasks", now_ms=_COUNT, tasks=_many("JournalAnswer")),
}
_BODIES: Final = (
    ScheduleBody, BackfillBody,
    StartBody, HeartbeatBody, HeartbeatTask, JournalBody, JournalTask, EmitBody, EmitTask, SuspendBody, SuspendTask,
    ReadBody, ReadTask, PollBody, AnswersBody, FrameBody, StatusesBody,
)  # fmt: skip


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. Made once per application."""
    if app.openapi_schema is None:
        app.openapi_schema = _make(app)
    return app.openapi_schema


def _make(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, bodies = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    components = found["components"]
    components["schemas"] |= bodies | SHAPES
    for unused in ("HTTPValidationError", "ValidationError"):
        del components["schemas"][unused]
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A namespace's key; none in keyless development"}
    }
    for path, methods in found["paths"].items():
        for operation in methods.values():
            _complete(path, operation)
    return found


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    nexus = path.startswith("/nexus/")
    responses["default"] = {
        "description": "A Nexus HandlerError" if nexus else "A problem",
        "content": FAILURE if nexus else _PROBLEM,
    }
    for status, response in responses.items():
        if status.startswith("4") and "content" not in response:
            response["content"] = _PROBLEM
    if path not in _OPEN:
        operation["security"] = [{}, {"key": []}]


def main() -> None:
    """Print the document of this version."""
    from gateway.app import bare_app  # noqa: PLC0415 - app.py needs `document`

    json.dump(document(bare_app()), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
