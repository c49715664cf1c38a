"""What a caller can meet beside the refusals of mesh/errors.py, and how answers of a gateway become exceptions.

MeshError
  OperationUnsuccessful   the operation ended without a result; `failure` is the Nexus Failure
    OperationFailed
    OperationCanceled
    OperationTimedOut
  StillRunning            the caller's own patience ended first; the operation goes on
  Unavailable
    GatewayUnreachable    no answer from any gateway for as long as the client repeats
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final, cast

from mesh.errors import (
    Conflict,
    Forbidden,
    Gone,
    HeadersTooLarge,
    Malformed,
    MeshError,
    NotFound,
    PreconditionFailed,
    Refusal,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)

CAUSES_SHOWN_MAX: Final = 3

_REFUSALS: Final[dict[int, type[Refusal]]] = {
    kind.status: kind
    for kind in (
        *(Malformed, Unauthenticated, Forbidden, NotFound, Conflict, Gone),
        *(PreconditionFailed, TooLarge, Unprocessable, HeadersTooLarge),
    )
}


class OperationUnsuccessful(MeshError):
    """The operation ended without a result.

    failure        the Nexus Failure: `message`, `metadata`, `details`, `cause`, ... (P12)
    operation_id   of the operation
    state          failed, canceled or timed_out
    """

    code = "operation_unsuccessful"
    state: ClassVar[str] = "failed"

    def __init__(self, operation_id: str, failure: dict[str, Any]) -> None:
        super().__init__(f"operation {operation_id} {self.state.replace('_', ' ')}: {story(failure)}")
        self.operation_id = operation_id
        self.failure = failure


class OperationFailed(OperationUnsuccessful):
    code = "operation_failed"


class OperationCanceled(OperationUnsuccessful):
    code = "operation_canceled"
    state = "canceled"


class OperationTimedOut(OperationUnsuccessful):
    code = "operation_timed_out"
    state = "timed_out"


class StillRunning(MeshError, TimeoutError):
    """`timeout_s` is over and the operation is not. It goes on; ask again by `operation_id`. `why`: in its way."""

    code = "still_running"

    def __init__(self, operation_id: str, why: str = "") -> None:
        how = f"waits: {why}" if why else "still runs"
        super().__init__(f"operation {operation_id} {how}; its result can be asked for later")
        self.operation_id = operation_id


class GatewayUnreachable(Unavailable):
    code = "gateway_unreachable"


UNSUCCESSFUL: Final[dict[str, type[OperationUnsuccessful]]] = {
    kind.state: kind for kind in (OperationFailed, OperationCanceled, OperationTimedOut)
}


def refusal(status: int, body: bytes, retry_after_s: int) -> MeshError:
    """The exception for an answer of 400 and above: problem+json, a Nexus Failure of the gateway, or something else."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    fields: dict[str, Any] = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    metadata = fields.get("metadata")
    code = fields.get("code") or (cast("dict[str, Any]", metadata).get("code") if isinstance(metadata, dict) else None)
    code = code if isinstance(code, str) else None
    detail = str(fields.get("detail") or fields.get("message") or f"the gateway answered {status}")
    kind = _REFUSALS.get(status)
    if kind is not None:
        return kind(detail, code=code, errors=fields.get("errors"), operation_id=fields.get("operation_id"))
    if status == TooMany.status:
        return TooMany(detail, retry_after_s=retry_after_s or 1, code=code)
    if status >= 500:  # noqa: PLR2004
        return Unavailable(detail, retry_after_s=retry_after_s or 1, code=code)
    return Refusal(detail, code=code)


def story(failure: Any) -> str:
    """The messages of a Nexus Failure and its causes, each once."""
    told: list[str] = []
    while isinstance(failure, dict) and len(told) < CAUSES_SHOWN_MAX:
        fields = cast("dict[str, Any]", failure)
        message = fields.get("message")
        if isinstance(message, str) and message and message not in told:
            told.append(message)
        failure = fields.get("cause")
    return ": ".join(told) or "no reason given"
