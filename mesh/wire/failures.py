"""Nexus Failure JSON: the error types, both error shapes, and reading what other implementations send.

Owns the form of failures (P4, P43). Knows nothing of attempts: `retryable` is what the peer said or
what its type implies, not what the mesh will do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeGuard, cast

from mesh.errors import Malformed
from mesh.wire.headers import RawHeaders, header, is_json_type
from mesh.wire.strict_json import READ_NS_MAX, load_json

HANDLER_ERRORS: Final[dict[str, tuple[int, bool]]] = {
    "BAD_REQUEST": (400, False),
    "UNAUTHENTICATED": (401, False),
    "UNAUTHORIZED": (403, False),
    "NOT_FOUND": (404, False),
    "REQUEST_TIMEOUT": (408, True),
    "CONFLICT": (409, False),
    "RESOURCE_EXHAUSTED": (429, True),
    "INTERNAL": (500, True),
    "NOT_IMPLEMENTED": (501, False),
    "UNAVAILABLE": (503, True),
    "UPSTREAM_TIMEOUT": (520, True),
}
"""Type -> (HTTP status, retryable unless overridden); Nexus spec, Predefined Handler Errors."""

UNKNOWN: Final = "UNKNOWN"
"""The type of an answer with a status outside the table; retryable, as both reference clients take it."""

OPERATION_FAILED_STATUS: Final = 424
PEER_TEXT_MAX: Final = 1024
"""Characters of a body that is no Failure, kept as the message of the cause."""

FAILURE_DEPTH_MAX: Final = 100
"""Levels of a peer's failure: wrapped as a cause on every hop, it must stay readable for the next mesh."""

Failure: TypeAlias = dict[str, Any]
"""`message`, `stackTrace`, `metadata` (string map), `details` (any JSON), `cause` (Failure); all optional."""
Unsuccessful: TypeAlias = Literal["failed", "canceled"]

_HANDLER_ERROR: Final = "nexus.HandlerError"
_OPERATION_ERROR: Final = "nexus.OperationError"
_TYPES: Final = {status: name for name, (status, _) in HANDLER_ERRORS.items()}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def handler_error_type(status: int) -> str:
    """The type that a status stands for, UNKNOWN outside the table."""
    return _TYPES.get(status, UNKNOWN)


def retryable_by_default(error_type: str) -> bool:
    """Whether an error of that type may be repeated when nobody says otherwise; True for types unheard of."""
    known = HANDLER_ERRORS.get(error_type)
    return known is None or known[1]


def failure_json(failure: Failure) -> bytes:
    """UTF-8 JSON of a Failure; a lone surrogate becomes `?`. Raises ValueError on NaN in details."""
    return _encode(failure).encode("utf-8", "replace")


def _failure(
    kind: str,
    message: str,
    *,
    details: dict[str, Any],
    cause: Failure | None,
    metadata: Mapping[str, str] | None,
    stack_trace: str | None,
) -> Failure:
    failure: Failure = {"message": message}
    if stack_trace is not None:
        failure["stackTrace"] = stack_trace
    failure["metadata"] = {**metadata, "type": kind} if metadata else {"type": kind}
    failure["details"] = details
    if cause is not None:
        failure["cause"] = cause
    return failure


def handler_failure(
    error_type: str,
    message: str,
    *,
    retryable: bool | None = None,
    cause: Failure | None = None,
    metadata: Mapping[str, str] | None = None,
    stack_trace: str | None = None,
) -> Failure:
    """A HandlerError as Failure; `retryable` becomes `retryableOverride`, None leaves the type's default.

    `details.type` is always there: without it Temporal retries until its timeout.
    """
    details: dict[str, Any] = {"type": error_type}
    if retryable is not None:
        details["retryableOverride"] = retryable
    return _failure(_HANDLER_ERROR, message, details=details, cause=cause, metadata=metadata, stack_trace=stack_trace)


def headers_for_handler_error(error_type: str, *, retryable: bool | None = None) -> list[tuple[bytes, bytes]]:
    """Type and the older `Nexus-Request-Retryable`, which clients before the 2025-10 model go by."""
    if retryable is None:
        retryable = retryable_by_default(error_type)
    return [
        (b"content-type", b"application/json"),
        (b"nexus-request-retryable", b"true" if retryable else b"false"),
    ]


def operation_failure(
    state: Unsuccessful,
    message: str,
    *,
    cause: Failure | None = None,
    metadata: Mapping[str, str] | None = None,
    stack_trace: str | None = None,
) -> Failure:
    """An OperationError as Failure."""
    return _failure(
        _OPERATION_ERROR,
        message,
        details={"state": state},
        cause=cause,
        metadata=metadata,
        stack_trace=stack_trace,
    )


def headers_for_operation_error(state: Unsuccessful) -> list[tuple[bytes, bytes]]:
    """Type and the older state header, without which sdk-go v0.4.0 clients do not read a 424."""
    return [(b"content-type", b"application/json"), (b"nexus-operation-state", state.encode())]


def _kind(failure: Failure) -> str | None:
    metadata = failure.get("metadata")
    return cast("dict[str, str]", metadata).get("type") if isinstance(metadata, dict) else None


def _details(failure: Failure) -> dict[str, Any]:
    details = failure.get("details")
    return cast("dict[str, Any]", details) if isinstance(details, dict) else {}


def as_operation_failure(state: Unsuccessful, failure: Failure) -> Failure:
    """`failure` as an OperationError whose `details.state` is `state`; any other shape becomes the cause.

    Senders before 2025-10, and Temporal to this day, put the plain cause on the wire.
    """
    if _kind(failure) == _OPERATION_ERROR:
        details = _details(failure)
        if details.get("state") == state:
            return failure
        return failure | {"details": details | {"state": state}}
    return operation_failure(state, failure.get("message") or f"operation {state}", cause=failure)


def is_failure(value: object) -> TypeGuard[Failure]:
    """Whether a JSON value has the fields of a Failure, down the whole cause chain."""
    while isinstance(value, dict):
        fields = cast("Failure", value)
        if not all(isinstance(fields.get(name), str | None) for name in ("message", "stackTrace")):
            return False
        metadata = cast("object", fields.get("metadata") or {})
        if not isinstance(metadata, dict):
            return False
        if not all(isinstance(entry, str) for entry in cast("Iterable[object]", metadata.values())):
            return False
        value = fields.get("cause")
        if value is None:
            return True
    return False


def peer_failure(headers: RawHeaders, body: bytes) -> Failure | None:
    """What a peer's body says, as a Failure: its own, or its text or JSON wrapped; None for an empty body.

    Never raises: whatever a proxy or framework in front of the handler answered stays visible (case 49).
    """
    return _peer_failure(headers, body)[0]


def _peer_failure(headers: RawHeaders, body: bytes) -> tuple[Failure | None, str]:
    """The same, and the message when the peer itself sent a Failure, "" when it was made here."""
    if not body:
        return None, ""
    text = body[: PEER_TEXT_MAX * 4].decode("utf-8", "replace")[:PEER_TEXT_MAX].replace("\0", "\ufffd")
    if not is_json_type(header(headers, b"content-type")):
        return {"message": text}, ""
    try:
        value = load_json(body, FAILURE_DEPTH_MAX, ns_max=READ_NS_MAX)
    except Malformed:
        return {"message": text}, ""
    # `{"detail": ...}` of a web framework passes as a Failure without message; its own words would be lost.
    if is_failure(value) and not value.keys().isdisjoint(("message", "metadata", "details", "cause")):
        return value, value.get("message") or ""
    return {"message": text, "details": value}, ""


class HandlerFailure(NamedTuple):
    """A handler error as read. `type` may be one the table lacks; `failure` is always a HandlerError."""

    type: str
    message: str
    retryable: bool
    failure: Failure


def parse_handler_failure(status: int, headers: RawHeaders, body: bytes, reason: str = "") -> HandlerFailure:
    """Any answer but 200, 201 and 424 to a start, or 202 to a cancel (P43, cases 48 to 50, 53).

    The body's type beats the status, its `retryableOverride` the type's default; `Nexus-Request-Retryable`
    counts only when the body is no HandlerError. `reason` is the status line's text, the message of the error unless
    the body is a Failure of another kind, as Temporal and handlers before 2025-10 send it. Never raises.
    """
    failure, said_by_peer = _peer_failure(headers, body)
    if failure is not None and _kind(failure) == _HANDLER_ERROR:
        details = _details(failure)
        error_type = details.get("type")
        if isinstance(error_type, str) and error_type:
            override = details.get("retryableOverride")
            retryable = override if isinstance(override, bool) else retryable_by_default(error_type)
            return HandlerFailure(error_type, failure.get("message") or error_type, retryable, failure)
    said = (header(headers, b"nexus-request-retryable") or b"").lower()
    override = {b"true": True, b"false": False}.get(said)
    error_type = handler_error_type(status)
    message = said_by_peer or f"{status} {reason}".rstrip()
    retryable = retryable_by_default(error_type) if override is None else override
    return HandlerFailure(
        error_type,
        message,
        retryable,
        handler_failure(error_type, message, retryable=override, cause=failure),
    )


class OperationOutcome(NamedTuple):
    """How an operation ended without success; `failure` is always in the OperationError shape."""

    state: Unsuccessful
    failure: Failure


def unsuccessful(state: object) -> Unsuccessful | None:
    """`state` when it is `failed` or `canceled`."""
    return state if state in ("failed", "canceled") else None


def parse_operation_error(headers: RawHeaders, body: bytes) -> OperationOutcome | None:
    """A 424. The state is the body's, else the header's; None for neither: a protocol error (case 51)."""
    failure = peer_failure(headers, body) or {"message": ""}
    state = unsuccessful(_details(failure).get("state")) if _kind(failure) == _OPERATION_ERROR else None
    if state is None:
        state = unsuccessful((header(headers, b"nexus-operation-state") or b"").decode("latin-1"))
    return None if state is None else OperationOutcome(state, as_operation_failure(state, failure))
