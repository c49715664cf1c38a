"""Faults of the gateway itself as the Nexus surface says them: a HandlerError, as Failure JSON. Pure."""

from __future__ import annotations

from typing import Final

from gateway.outcomes import GATEWAY
from gateway.problems import STORE_REFUSED, STORE_REFUSED_DETAIL
from mesh.edge import Answer
from mesh.errors import ConfigError, Gone, Refusal, StoreUnsafe, TooMany, Unauthenticated, Unavailable
from mesh.wire import failure_json, handler_failure, headers_for_handler_error

_TYPES: Final = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "UNAUTHORIZED", 404: "NOT_FOUND", 408: "REQUEST_TIMEOUT",
    409: "CONFLICT", 410: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "NOT_IMPLEMENTED",
    503: "UNAVAILABLE",
}  # fmt: skip


def render(error: Exception) -> Answer:
    """A gateway fault as HandlerError. Sizes and schema breaches are BAD_REQUEST on this surface (P2, P20)."""
    headers: list[tuple[bytes, bytes]] = [GATEWAY]
    retryable: bool | None = None
    metadata: dict[str, str] = {}
    if isinstance(error, Refusal):
        status = error.status if error.status in _TYPES else 400
        message = error.detail
        metadata["code"] = error.code
        if error.operation_id:
            headers.append((b"mesh-operation-id", error.operation_id.encode()))
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", b'Bearer realm="mesh"'))
        if isinstance(error, Gone):
            status = 410
        if isinstance(error, TooMany):
            headers += error.headers
    elif isinstance(error, ConfigError):
        status, message = 503, STORE_REFUSED_DETAIL
        metadata["code"] = STORE_REFUSED
    elif isinstance(error, Unavailable | StoreUnsafe):
        status, message = 503, error.detail
        metadata["code"] = error.code
    else:
        status, message = 500, "internal error of the gateway"
    retry_after_s = getattr(error, "retry_after_s", 1 if status in (429, 503) else None)
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    kind = _TYPES[status]
    headers += headers_for_handler_error(kind, retryable=retryable)
    return Answer(status, headers, failure_json(handler_failure(kind, message, metadata=metadata)))
