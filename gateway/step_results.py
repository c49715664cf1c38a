"""Results too large for a journal's entry, of steps and children: `PUT /v1/tasks/blobs`, `GET .../{id}/blobs/{sha256}`.

Owns the two routes; what is kept where is payloads.py, and the entry that refers to it is the agent's own. A blob that
no entry names is nobody's: it goes when its operation ended and it is old, at the latest with the operation (P413). A
child's result stays the child's, which is kept for as long as its parent may read it (P440).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.journals import ANSWER_BYTES, digest_of, foreign_token
from gateway.outcomes import encode_json
from gateway.payloads import DIGESTS, blob_url, check_told, dataref
from gateway.problems import problem
from gateway.tasks import header_token
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import NotFound, Unauthenticated
from mesh.ids import is_operation_id
from mesh.wire.digests import digest_field

if TYPE_CHECKING:
    from gateway.auth import Auth
    from gateway.operations import Operations
    from gateway.orders import Known
    from mesh.store.layout import Outcome
    from mesh.streams import Intake

PUT: Final = b"/v1/tasks/blobs"
PATH: Final = b"/v1/operations/"
BLOBS: Final = b"/blobs/"
OCTETS: Final = "application/octet-stream"
_JSON: Final = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_sha256: Final = re.compile(rb"[0-9a-f]{64}").fullmatch


class StepResults:
    """Route functions; `find` names the one for a request."""

    def __init__(self, operations: Operations, auth: Auth) -> None:
        self._operations = operations
        self._auth = auth
        self._put = HotRoute(self.put, problem, self._take)
        self._get = HotRoute(self.get, problem)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """PUT /v1/tasks/blobs and GET /v1/operations/{id}/blobs/{sha256}."""
        if method == "PUT":
            return self._put if raw_path == PUT else None
        return self._get if method == "GET" and BLOBS in raw_path and raw_path.startswith(PATH) else None

    def _take(self, request: Request) -> Intake:
        operation = self._operations.check_token(_token(request))
        return self._operations.payloads.take_step(request, operation)

    async def put(self, request: Request) -> Answer:
        """Keep the body for the running attempt that has the token; 200 with what refers to it (P410)."""
        token, payloads = _token(request), self._operations.payloads
        if DIGESTS & request.first.keys() and request.intake is None:
            check_told(request.first, request.body)
        # Looked at when all of it is here: an upload may take longer than what its sender has left of the lease.
        operation = await self._operations.holder(token)
        if request.intake is None:
            data = await payloads.keep_step(operation, request.body)
        else:
            data = await payloads.keep(operation, await request.intake.finish())
        content_type = request.first.get(b"content-type", b"").decode("latin-1") or OCTETS
        shown = dataref(blob_url(operation, data.sha256), data, content_type)
        return Answer(200, _JSON, encode_json(shown))

    async def get(self, request: Request) -> Answer:
        """The bytes, for the operation's caller and for whoever has the token of an attempt of it, or of its parent."""
        name, _, sha256 = request.raw_path[len(PATH) :].partition(BLOBS)
        if not _sha256(sha256):
            raise NotFound("the path is /v1/operations/{id}/blobs/{SHA-256 in hex}", code="unknown_route")
        operation, wanted, token = name.decode("latin-1"), sha256.decode(), header_token(request)
        if token:
            known = await self._by_token(token, operation, wanted)
        else:
            known = await self._operations.get(operation, self._auth.authenticate(request.headers).namespace)
        payloads = self._operations.payloads
        headers = [(b"content-type", OCTETS.encode()), (b"mesh-operation-id", operation.encode())]
        headers.append((b"cache-control", b"no-store"))
        body = await _in_record(known.outcome, wanted)
        if body is not None:
            return Answer(200, [*headers, (b"repr-digest", digest_field(wanted).encode())], body)
        data = await payloads.find(operation, wanted)
        return await payloads.answering(Answer(200, headers), request, operation, data)

    async def _by_token(self, token: str, operation: str, wanted: str) -> Known:
        """The record, for an attempt of it; or, of its result, for one of the parent. Raises Unauthenticated, NotFound.

        Who asks for another's is not told whether that is there.
        """
        claim = self._operations.claim_of(token)
        if claim.operation_id == operation:
            return await self._operations.at_work(operation)
        known = await self._operations.read(operation) if is_operation_id(operation) else None
        if known is None or known.head.parent != f"{claim.operation_id}.{claim.run}":
            raise foreign_token()
        data = known.outcome.data if known.outcome is not None else None
        if (data is None or data.sha256 != wanted) and await _in_record(known.outcome, wanted) is None:
            raise foreign_token()
        return known


async def _in_record(outcome: Outcome | None, sha256: str) -> bytes | None:
    """A result in the record itself that is too much for a page of a journal, if it is this one."""
    if outcome is None or outcome.kind != "result" or len(outcome.body) <= ANSWER_BYTES:
        return None
    return outcome.body if await digest_of(outcome.body) == sha256 else None


def _token(request: Request) -> str:
    token = header_token(request)
    if not token:
        raise Unauthenticated("name the attempt: its task token in Mesh-Task-Token", code="token_invalid")
    return token
