"""The one error tree. Expected outcomes are values; what is raised stands here, named by whose fault it is.

    MeshError
      Refusal                 the request cannot be accepted as it is; nothing was changed
        Malformed             400
        Unauthenticated       401
        Forbidden             403
        NotFound              404   also: belongs to another namespace
        Conflict              409   other content, other outcome, name taken, lease lost
        Gone                  410   past retention
        PreconditionFailed    412
        TooLarge              413
        Unprocessable         422
        HeadersTooLarge       431
        TooMany               429   retry_after_s
      Unavailable             503   retry_after_s; try again, nothing was changed
        StoreUnavailable            not reachable, read-only, out of memory
        OutcomeUnknown              sent and not answered: may have been applied, repeat with the same key
        StorageFull         507     no room for a large body; nothing of it was kept
        BlobMissing                 a large payload is not where this process looks for it
        BlobCorrupt                 what is there has another digest than what was put there
      StoreUnsafe             the start-up gate refused this store; says why and how to mend it
      ConfigError             settings or arguments that cannot work
      PeerFault               what an agent or a callback receiver did, seen from the connection pool
        NotSent               the peer surely did not get the request (DNS, refused, TLS, no free connection)
        ReplyLost             the connection broke after the request was sent: unknown
        ReplyTimeout          no complete reply in time: unknown
        ReplyInvalid          not HTTP, too large, a body cut short or mislabelled
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class MeshError(Exception):
    """Base of all errors of the project. `code` is a stable word, `detail` one sentence for a person."""

    code: str = "error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class Refusal(MeshError):
    """The request cannot be accepted as it is. `errors` are `{pointer, detail}` with RFC 6901 pointers."""

    status: ClassVar[int] = 400
    retryable: ClassVar[bool] = False
    code = "refused"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        operation_id: str | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.errors = errors or []
        self.operation_id = operation_id


class Malformed(Refusal):
    status = 400
    code = "malformed"


class Unauthenticated(Refusal):
    status = 401
    code = "unauthenticated"


class Forbidden(Refusal):
    status = 403
    code = "forbidden"


class NotFound(Refusal):
    status = 404
    code = "not_found"


class Conflict(Refusal):
    status = 409
    code = "conflict"


class Gone(Refusal):
    status = 410
    code = "gone"


class PreconditionFailed(Refusal):
    status = 412
    code = "precondition_failed"


class TooLarge(Refusal):
    status = 413
    code = "too_large"


class Unprocessable(Refusal):
    status = 422
    code = "unprocessable"


class HeadersTooLarge(Refusal):
    status = 431
    code = "headers_too_large"


class TooMany(Refusal):
    """A quota or a cap; `retry_after_s` whole seconds. `headers`: what the answer says of the quota."""

    status = 429
    retryable = True
    code = "too_many"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: int = 1,
        code: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_s = retry_after_s
        self.headers = headers


class Unavailable(MeshError):
    """Not now; `retry_after_s` whole seconds."""

    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True
    code = "unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 1, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class OutcomeUnknown(Unavailable):
    code = "outcome_unknown"


class StorageFull(Unavailable):
    status = 507
    code = "blob_storage_full"


class BlobMissing(Unavailable):
    code = "blob_missing"


class BlobCorrupt(Unavailable):
    code = "blob_corrupt"


class StoreUnsafe(MeshError):
    """The start-up gate's refusal. `detail` is the reason, `mend` what the operator can do."""

    code = "store_unsafe"

    def __init__(self, detail: str, *, mend: str, code: str | None = None) -> None:
        super().__init__(f"{detail} {mend}", code=code)
        self.reason = detail
        self.mend = mend


class ConfigError(MeshError):
    code = "config"


class PeerFault(MeshError):
    code = "peer_fault"


class NotSent(PeerFault):
    code = "not_sent"


class ReplyLost(PeerFault):
    code = "reply_lost"


class ReplyTimeout(PeerFault):
    code = "reply_timeout"


class ReplyInvalid(PeerFault):
    code = "reply_invalid"
