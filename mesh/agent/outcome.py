"""How a call ended, as the answer that leaves: results, operation errors, handler errors (P43).

Owns the step from Python values and exceptions to status, headers and body. Knows no request and no connection.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import nexusrpc
from msgspec.structs import replace
from nexusrpc import HandlerError, HandlerErrorType, OperationError

from mesh.agent.codec import BYTES, JSON, Codec, Undecodable
from mesh.blob import Blob
from mesh.errors import Malformed
from mesh.wire import (
    HANDLER_ERRORS,
    Failure,
    Link,
    RawHeader,
    failure_json,
    format_link,
    handler_failure,
    headers_for_handler_error,
    headers_for_operation_error,
    operation_failure,
)
from mesh.wire.digests import CONTENT_DIGEST, digest_field

CAUSES_MAX: Final = 16
logger: Final = logging.getLogger("mesh.agent")

_encode: Final = msgspec.json.Encoder().encode
PLAIN_JSON: Final[tuple[RawHeader, ...]] = (
    (b"content-type", JSON.encode()), (b"nexus-operation-state", b"succeeded")
)  # fmt: skip
"""Of most results: JSON, of which there is nothing more to say."""
_SUCCEEDED: Final[dict[str | None, tuple[RawHeader, ...]]] = {
    None: ((b"nexus-operation-state", b"succeeded"),),
    JSON: PLAIN_JSON,
    BYTES: ((b"content-type", BYTES.encode()), (b"nexus-operation-state", b"succeeded")),
}
_RUNNING: Final[tuple[RawHeader, ...]] = (
    (b"content-type", JSON.encode()),
    (b"nexus-operation-state", b"running"),
)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """An answer. `state`: succeeded, failed, canceled, running (201), or error: a handler error, `retryable` or not."""

    status: int
    headers: tuple[RawHeader, ...]
    body: bytes
    state: str
    retryable: bool = False
    blob: Blob | None = None
    """In place of `body`: a result that is streamed."""


def succeeded(codec: Codec, value: Any, links: Sequence[nexusrpc.Link] = ()) -> Outcome:
    """200 with the value. Raises Undecodable when it is not of the promised type."""
    if isinstance(value, Blob) and codec.takes_blobs:
        return linked(Outcome(200, _blob_headers(value), b"", "succeeded", blob=value), links)
    media_type, body = codec.encode(value)
    outcome = Outcome(200, _SUCCEEDED[media_type], body, "succeeded")
    return linked(outcome, links) if links else outcome


async def digested(outcome: Outcome) -> Outcome:
    """With the digest of a result that is streamed, so that whoever gets it knows whether it got it."""
    if outcome.blob is None:
        return outcome
    told = digest_field(await outcome.blob.digest()).encode()
    return replace(outcome, headers=(*outcome.headers, (CONTENT_DIGEST, told)))


def _blob_headers(blob: Blob) -> tuple[RawHeader, ...]:
    content_type = blob.content_type or BYTES
    if not content_type.isascii() or not content_type.isprintable():
        raise Undecodable(f"the Blob's content_type {content_type[:100]!r} is no media type")
    return ((b"content-type", content_type.encode()), (b"nexus-operation-state", b"succeeded"))


def running(token: str, links: Sequence[nexusrpc.Link] = ()) -> Outcome:
    """201: the operation goes on under `token`."""
    return linked(Outcome(201, _RUNNING, _encode({"token": token, "state": "running"}), "running"), links)


def refusal(error_type: str, message: str, *, retry_after_s: int | None = None) -> Outcome:
    """A handler error of the host itself; `error_type` is one of the spec's."""
    status, retryable = HANDLER_ERRORS[error_type]
    headers = headers_for_handler_error(error_type)
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    return Outcome(status, tuple(headers), failure_json(handler_failure(error_type, message)), "error", retryable)


def canceled(reason: str) -> Outcome:
    return _operation_error(OperationError(reason, state=nexusrpc.OperationErrorState.CANCELED))


def raised(error: Exception, where: str) -> Outcome:
    """What an exception of a handler means. Of those that are no Nexus errors the type leaves, the text is logged."""
    if isinstance(error, OperationError):
        return _operation_error(error)
    if isinstance(error, HandlerError):
        status, _ = HANDLER_ERRORS.get(error.raw_error_type, (500, True))
        headers = headers_for_handler_error(error.raw_error_type, retryable=error.retryable)
        return Outcome(status, tuple(headers), failure_json(failure_of(error)), "error", error.retryable)
    logger.error("%s raised %s", where, type(error).__name__, exc_info=error)
    return refusal("INTERNAL", f"the handler raised {type(error).__name__}; the agent's log has the rest")


def failure_of(error: BaseException, depth: int = 0) -> Failure:
    """An exception with its causes (`raise ... from ...`) as a Failure; at most CAUSES_MAX deep."""
    cause = error.__cause__
    inner = failure_of(cause, depth + 1) if cause is not None and depth < CAUSES_MAX else None
    if isinstance(error, (HandlerError, OperationError)) and error.original_failure is not None:
        original = _wire(error.original_failure)
        if original.get("metadata", {}).get("type") == f"nexus.{type(error).__name__}":
            return original  # passed on as it was received
        inner = original
    if isinstance(error, HandlerError):
        return handler_failure(
            error.raw_error_type,
            error.message,
            retryable=error.retryable_override,
            cause=inner,
            stack_trace=error.stack_trace,
        )
    if isinstance(error, OperationError):
        word = "canceled" if error.state is nexusrpc.OperationErrorState.CANCELED else "failed"
        return operation_failure(word, error.message, cause=inner, stack_trace=error.stack_trace)
    kind = type(error).__name__
    failure: Failure = {"message": str(error) or kind, "metadata": {"type": kind}}
    if inner is not None:
        failure["cause"] = inner
    return failure


def linked(outcome: Outcome, links: Sequence[nexusrpc.Link]) -> Outcome:
    """The answer with the handler's links. One that nobody could read is left out: the outcome counts more."""
    texts: list[str] = []
    for link in links:
        try:
            texts.append(format_link(Link(link.url, link.type)))
        except Malformed as error:
            logger.warning("a link of a handler is left out: %s: %s", link, error.detail)
    if not texts:
        return outcome
    return replace(outcome, headers=(*outcome.headers, (b"nexus-link", ", ".join(texts).encode("ascii"))))


def bad_request(message: str) -> HandlerError:
    """Never retried by whoever follows the spec: the same input fails again."""
    return HandlerError(message, type=HandlerErrorType.BAD_REQUEST)


def _operation_error(error: OperationError) -> Outcome:
    word = "canceled" if error.state is nexusrpc.OperationErrorState.CANCELED else "failed"
    return Outcome(424, tuple(headers_for_operation_error(word)), failure_json(failure_of(error)), word)


def _wire(failure: nexusrpc.Failure) -> Failure:
    wire: Failure = {"message": failure.message}
    if failure.stack_trace is not None:
        wire["stackTrace"] = failure.stack_trace
    if failure.metadata is not None:
        wire["metadata"] = dict(failure.metadata)
    if failure.details is not None:
        wire["details"] = dict(failure.details)
    if failure.cause is not None:
        wire["cause"] = _wire(failure.cause)
    return wire
