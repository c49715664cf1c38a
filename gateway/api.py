"""The /v1 surface of operations: start and result as hot routes, the rest as ordinary FastAPI routes. HTTP in, thin."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.callbacks import operation_link
from gateway.outcomes import encode_json, known_fields, nexus_answer, record_fields
from gateway.payloads import DIGESTS, check_told
from gateway.problems import problem
from gateway.query import check_names
from gateway.reading import ended
from gateway.start_body import MESH_START, TIMEOUT_MS_MAX, as_v1, beside, read_order, read_start
from gateway.step_results import StepResults
from gateway.tasks import header_token
from gateway.wishes import SELDOM, with_parent
from mesh.clock import monotonic_s, now_ms
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Conflict, Malformed, Refusal, TooLarge, Unprocessable
from mesh.wire import caller_headers, check_json, costly, parse_prefer
from mesh.wire.headers import is_json_type

if TYPE_CHECKING:
    from gateway.auth import Auth
    from gateway.operations import Known, Operations, Placed
    from mesh.store.layout import Head
    from mesh.streams import Intake
    from mesh.wire import RawHeader

PATH: Final = b"/v1/operations"
RESULT: Final = b"/result"
INPUT: Final = b"/input"
RETRY_AFTER_S: Final = 1
RETRY_AFTER_S_MAX: Final = 3_600


_JSON: Final = (b"content-type", b"application/json")
_UNSTORED: Final = (b"cache-control", b"no-store")
FORM: Final = b"application/x-www-form-urlencoded"
"""What curl says of any body unless it is told."""


class OperationsSurface:
    """Hot routes of /v1/operations."""

    def __init__(
        self, operations: Operations, auth: Auth, *, public_url: str, wait_default_ms: int, wait_max_ms: int
    ) -> None:
        self._operations = operations
        self._auth = auth
        self._public_url = public_url
        self._wait_default_ms = wait_default_ms
        self._wait_max_ms = wait_max_ms
        self._start = HotRoute(self.start, _problem, self._take_input)
        self._result = HotRoute(self.result, problem)
        self._input = HotRoute(self.input, problem)
        self._steps = StepResults(operations, auth)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """POST /v1/operations, GET /v1/operations/{id}/{result|input}, large steps; everything else is FastAPI's."""
        if method == "POST":
            return self._start if raw_path == PATH else None
        if method == "GET" and raw_path.startswith(PATH):
            if raw_path.endswith(RESULT):
                return self._result
            if raw_path.endswith(INPUT):
                return self._input
        return self._steps.find(method, raw_path)

    def _take_input(self, request: Request) -> Intake | None:
        """With the order in a header the body is the input, and may be large (P391)."""
        if MESH_START not in request.first:
            return None
        return self._operations.payloads.take_input(request, self._auth.authenticate(request.headers).namespace)

    async def start(self, request: Request) -> Answer | None:
        """200 with the finished record, or 202 with `Location` (P60)."""
        principal = self._auth.authenticate(request.headers, request.first)
        headers = caller_headers(request.headers)
        wait_ms, applied = self._wait_ms(request)
        plain = SELDOM.isdisjoint(request.first)
        if not plain:
            _check_digest(request)
        ordered = request.first.get(MESH_START)
        told = request.body if ordered is None else ordered
        try:
            if costly(told):
                await self._operations.check_json(told, principal.namespace)
            else:
                check_json(told)
            body = read_start(told)
        except (Malformed, Unprocessable) as refusal:
            raise _placed(refusal, request) from None
        if ordered is None:
            order = read_order(body, principal.namespace, headers)
        else:
            content = None if not request.body and request.intake is None else request.body
            content_type = request.first.get(b"content-type")
            order = beside(body, principal.namespace, headers, content_type, content)
            if request.intake is not None:
                order = replace(order, large=await request.intake.finish())
        order = order if plain else with_parent(order, request.first)
        if order.later is not None and order.later.left_ms() >= wait_ms:
            wait_ms = 0
        try:
            placed = await self._operations.start(order, wait=wait_ms > 0)
        except Conflict as conflict:
            raise as_v1(conflict) from None
        mine = placed.attempt
        if wait_ms <= 0 and mine is not None:
            request.answer(self._answer(placed, None, applied))
            await self._operations.send(mine, request)
            return None
        wait_s = wait_ms / 1000
        until_s = monotonic_s() + wait_s
        conclude = partial(self._conclude, request, placed, until_s if wait_ms > 0 else None, applied)
        open_still = (
            self._operations.park(placed.first, wait_s, request, partial(self._at_once, placed, applied), conclude)
            if mine is None
            else await self._operations.carry(mine, wait_s, request, conclude)
        )
        return await conclude() if open_still else None

    def _at_once(self, placed: Placed, applied: bytes) -> Answer | None:
        """What a start is answered whose outcome is here."""
        ending = self._operations.ending_here(placed)
        return None if ending is None else self._answer(placed, ended(placed, ending), applied)

    async def _conclude(self, request: Request, placed: Placed, until_s: float | None, applied: bytes) -> Answer:
        """What a start is answered, at the latest then; None: it does not wait."""
        answer = self._at_once(placed, applied)
        if answer is not None:
            return answer
        wait_s = 0 if until_s is None else max(until_s - monotonic_s(), 0)
        known = await self._operations.first_outcome(placed, wait_s, request.gone)
        if known is None and until_s is not None:
            placed, known = await self._operations.at_last(placed)
        return self._answer(placed, known, applied)

    def _wait_ms(self, request: Request) -> tuple[float, bytes]:
        if b"prefer" in request.first:
            preference = parse_prefer(request.all(b"prefer"))
            if preference.respond_async and preference.wait_s is None:
                return 0, b"respond-async"
            if preference.wait_s is not None:
                wait_ms = min(round(preference.wait_s * 1000), self._wait_max_ms)
                return wait_ms, f"wait={wait_ms / 1000:.3f}".rstrip("0").rstrip(".").encode()
        return self._wait_default_ms, b""

    def _answer(self, placed: Placed, known: Known | None, applied: bytes) -> Answer:
        operation = placed.id.encode()
        headers = [
            _JSON,
            (b"location", b"/v1/operations/" + operation),
            (b"mesh-operation-id", operation),
            (b"nexus-link", operation_link(self._public_url, placed.id).encode()),
            _UNSTORED,
        ]
        if placed.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        if applied:
            headers.append((b"preference-applied", applied))
        if placed.quota:
            headers += placed.quota
        if known is not None:
            return Answer(200, headers, encode_json(known_fields(known)))
        headers.append((b"retry-after", b"%d" % _retry_after_s(placed.head)))
        record = record_fields(placed.id, placed.head, placed.request, None, placed.journal, started=placed.agent_links)
        return Answer(202, headers, encode_json(record))

    async def result(self, request: Request) -> Answer:
        """200 the result's own bytes and type, 424 the failure, 202 with the record while it runs."""
        principal = self._auth.authenticate(request.headers, request.first)
        operation = request.raw_path[len(PATH) + 1 : -len(RESULT)].decode("latin-1")
        wait_s, applied = self._result_wait_s(request)
        known = await self._operations.result(operation, principal.namespace, wait_s, request.gone)
        if known.state.terminal and known.outcome is not None:
            link = operation_link(self._public_url, operation).encode()
            answer = nexus_answer(operation, known.state, known.outcome, link, known.links, first=False)
            answer = replace(answer, headers=[*answer.headers, *applied, _UNSTORED])
            if known.outcome.data is None:
                return answer
            return await self._operations.payloads.answering(answer, request, operation, known.outcome.data)
        headers = [
            _JSON,
            (b"location", b"/v1/operations/" + operation.encode()),
            (b"retry-after", b"%d" % RETRY_AFTER_S),
            _UNSTORED,
            *applied,
        ]
        return Answer(202, headers, encode_json(known_fields(known)))

    async def input(self, request: Request) -> Answer:
        """The input's own bytes and type, for its caller and for whoever has the token of an attempt."""
        operation = request.raw_path[len(PATH) + 1 : -len(INPUT)].decode("latin-1")
        token = header_token(request)
        if token:
            self._operations.check_token(token, operation)
            known = await self._operations.at_work(operation)
        else:
            known = await self._operations.get(operation, self._auth.authenticate(request.headers).namespace)
        headers = [(b"mesh-operation-id", operation.encode()), _UNSTORED]
        if known.request.content_type is not None:
            headers.append((b"content-type", known.request.content_type.encode("latin-1")))
        if known.request.data is None:
            return Answer(200, headers, await self._operations.input(operation))
        return await self._operations.payloads.answering(Answer(200, headers), request, operation, known.request.data)

    def _result_wait_s(self, request: Request) -> tuple[float, list[RawHeader]]:
        """By `wait=`, else as a start's by `Prefer`, which is answered; none waits not."""
        arguments = request.arguments()
        check_names(arguments, ("wait",))
        text = arguments.get("wait", "")
        if not text:
            wait_ms, applied = self._wait_ms(request)
            return (wait_ms / 1000, [(b"preference-applied", applied)]) if applied else (0, [])
        return self._wait_s(text), []

    def _wait_s(self, text: str) -> float:
        try:
            wait_s = float(text.removesuffix("s"))
        except ValueError:
            wait_s = -1
        if not 0 <= wait_s < TIMEOUT_MS_MAX:
            raise Malformed("wait is a number of seconds, such as wait=30", code="wait_invalid")
        return min(wait_s, self._wait_max_ms / 1000)


def _check_digest(request: Request) -> None:
    """Of a body in memory; one in a file was looked at on its way there."""
    if not DIGESTS.isdisjoint(request.first) and request.intake is None:
        check_told(request.first, request.body)


def _placed(refusal: Refusal, request: Request) -> Refusal:
    """`refusal` of an order that cannot be read, with where it stands, or should."""
    if MESH_START in request.first:
        refusal.detail = f"Mesh-Start: {refusal.detail.removeprefix('the body is ')}"
    elif (kind := request.first.get(b"content-type")) and kind != FORM and not is_json_type(kind):
        refusal.detail += "; a body that is the input itself has its order in the header Mesh-Start"
    return refusal


def _problem(error: Exception) -> Answer:
    """As every other, and where a body of any size may go."""
    if isinstance(error, TooLarge) and "body_bytes_max" in error.detail and error.code == TooLarge.code:
        error.detail += "; as a body with its order in the header Mesh-Start an input may be larger"
    return problem(error)


def _retry_after_s(head: Head) -> int:
    """Before it begins there is no use in asking."""
    if not head.delay_ms:
        return RETRY_AFTER_S
    left_s = (head.created_at + head.delay_ms - now_ms()) // 1000 + 1
    return min(max(left_s, RETRY_AFTER_S), RETRY_AFTER_S_MAX)
