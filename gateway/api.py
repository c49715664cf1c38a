"""The /v1 surface of operations: start and result as hot routes, the rest as ordinary FastAPI routes. HTTP in, thin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from gateway.callbacks import FORMATS, NEXUS, operation_link
from gateway.operations import Order, Parent
from gateway.outcomes import encode_json, known_fields, nexus_answer, record_fields
from gateway.problems import problem
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Conflict, Malformed, Unprocessable
from mesh.wire import (
    caller_headers,
    check_callback_headers,
    check_endpoint,
    check_json,
    check_operation,
    check_service,
    parse_prefer,
)

if TYPE_CHECKING:
    from gateway.auth import Auth
    from gateway.operations import Known, Operations, Placed

PATH: Final = b"/v1/operations"
RESULT: Final = b"/result"
TIMEOUT_MS_MAX: Final = 365 * 86_400_000
LABELS_MAX: Final = 16
LABEL_CHARS_MAX: Final = 128
RETRY_AFTER_S: Final = 1

PARENT_KEY_BYTES_MAX: Final = 1_024
LATER: Final = ("priority", "delay_ms", "start_at")
"""Fields of later issues: refused until they work, never accepted silently (P63)."""

_JSON: Final = (b"content-type", b"application/json")


class CallbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """Where the outcome goes. `format`: nexus, cloudevents (structured) or cloudevents-binary."""

    url: str
    headers: dict[str, str] = {}
    format: str = NEXUS


class TimeoutsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Milliseconds; absent means what the endpoint's policy says."""

    schedule_to_close_ms: int | None = None
    schedule_to_start_ms: int | None = None
    start_to_close_ms: int | None = None
    request_timeout_ms: int | None = None


class ParentBody(msgspec.Struct, forbid_unknown_fields=True):
    """The running attempt that starts this as its child.

    `token`: its task token; `key`: what its journal calls the child; `on_close`: `cancel` or `keep` the child when the
    parent ends first.
    """

    token: str
    key: str
    on_close: Literal["cancel", "keep"] = "cancel"


class StartBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /v1/operations. `input` stays the caller's own bytes; absent is Nexus null (P64)."""

    endpoint: str
    service: str
    operation: str
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    callback: CallbackBody | None = None
    timeouts: TimeoutsBody | None = None
    labels: dict[str, str] = {}
    parent: ParentBody | None = None


_decode = msgspec.json.Decoder(StartBody).decode
_decode_names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _pointer(message: str) -> dict[str, str]:
    """Msgspec says `... - at `$.callback.url``; make it an RFC 6901 pointer."""
    text, _, path = message.partition(" - at `$")
    pointer = path.rstrip("`").replace("[...]", "").replace(".", "/")
    return {"pointer": pointer, "detail": text}


def read_start(body: bytes) -> StartBody:
    """Raises Malformed (not JSON, not_supported_yet) and Unprocessable with pointers."""
    check_json(body)
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        try:
            names = _decode_names(body).keys()
        except msgspec.ValidationError:
            names = ()
        for name in LATER:
            if name in names:
                detail = f"`{name}` is not supported yet; leave it out"
                raise Malformed(
                    detail, code="not_supported_yet", errors=[{"pointer": f"/{name}", "detail": detail}]
                ) from None
        entry = _pointer(str(error))
        raise Unprocessable(
            f"the body is not a start request: {entry['detail']}", code="body_invalid", errors=[entry]
        ) from None


def _breach(pointer: str, detail: str) -> Unprocessable:
    return Unprocessable(detail, code="body_invalid", errors=[{"pointer": pointer, "detail": detail}])


def _timeout(timeouts: TimeoutsBody, name: str) -> int:
    value: int | None = getattr(timeouts, name)
    if value is None:
        return 0
    if not 1 <= value <= TIMEOUT_MS_MAX:
        raise _breach(f"/timeouts/{name}", f"{name} is between 1 and {TIMEOUT_MS_MAX} ms")
    return value


def _names(body: StartBody) -> None:
    for pointer, check, value in (
        ("/endpoint", check_endpoint, body.endpoint),
        ("/service", check_service, body.service),
        ("/operation", check_operation, body.operation),
    ):
        try:
            check(value)
        except Malformed as error:
            raise _breach(pointer, error.detail) from None
    if len(body.labels) > LABELS_MAX:
        raise _breach("/labels", f"there are at most {LABELS_MAX} labels")
    for name, value in body.labels.items():
        if not name or len(name) > LABEL_CHARS_MAX or len(value) > LABEL_CHARS_MAX:
            raise _breach("/labels", f"label names and values have at most {LABEL_CHARS_MAX} characters")


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
        self._start = HotRoute(self.start, problem)
        self._result = HotRoute(self.result, problem)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """POST /v1/operations and GET /v1/operations/{id}/result; everything else is FastAPI's."""
        if method == "POST":
            return self._start if raw_path == PATH else None
        if method == "GET" and raw_path.startswith(PATH) and raw_path.endswith(RESULT):
            return self._result
        return None

    async def start(self, request: Request) -> Answer:
        """200 with the finished record, or 202 with `Location` (P60)."""
        principal = self._auth.authenticate(request.headers)
        headers = caller_headers(request.headers)
        wait_ms, applied = self._wait_ms(request)
        body = read_start(request.body)
        _names(body)
        timeouts = body.timeouts or TimeoutsBody()
        content = None if isinstance(body.input, msgspec.UnsetType) else bytes(body.input)
        callback = body.callback
        if callback is not None and callback.format not in FORMATS:
            raise _breach("/callback/format", f"the format is one of {', '.join(FORMATS)}")
        order = Order(
            principal.namespace,
            body.endpoint,
            body.service,
            body.operation,
            None if content is None else "application/json",
            content or b"",
            headers.key,
            [one for one in headers.forwarded if one[0] != b"accept"],
            "/input",
            callback.url if callback else "",
            callback.format if callback else NEXUS,
            _callback_headers(callback) if callback else [],
            _timeout(timeouts, "schedule_to_close_ms"),
            _timeout(timeouts, "schedule_to_start_ms"),
            _timeout(timeouts, "start_to_close_ms"),
            _timeout(timeouts, "request_timeout_ms"),
            body.labels,
            headers.links,
            parent=_parent(body.parent) if body.parent else None,
        )
        try:
            placed = await self._operations.start(order, wait=wait_ms > 0)
        except Conflict as conflict:
            if conflict.code != "key_reused":
                raise
            # 409 on the Nexus surface, 422 here (P62, httpapi draft 07).
            raise Unprocessable(conflict.detail, code=conflict.code, operation_id=conflict.operation_id) from None
        known = await self._operations.first_outcome(placed, wait_ms / 1000, request.gone)
        if known is None and wait_ms > 0:
            placed, known = await self._operations.at_last(placed)
        return self._answer(placed, known, applied)

    def _wait_ms(self, request: Request) -> tuple[float, bytes]:
        prefer = request.all(b"prefer")
        if prefer:
            preference = parse_prefer(prefer)
            if preference.respond_async and preference.wait_s is None:
                return 0, b"respond-async"
            if preference.wait_s is not None:
                wait_ms = min(preference.wait_s * 1000, self._wait_max_ms)
                return wait_ms, b"wait=%d" % (wait_ms // 1000)
        return self._wait_default_ms, b""

    def _answer(self, placed: Placed, known: Known | None, applied: bytes) -> Answer:
        headers = [
            _JSON,
            (b"location", b"/v1/operations/" + placed.id.encode()),
            (b"mesh-operation-id", placed.id.encode()),
            (b"nexus-link", operation_link(self._public_url, placed.id).encode()),
            (b"cache-control", b"no-store"),
        ]
        if placed.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        if applied:
            headers.append((b"preference-applied", applied))
        if known is not None:
            return Answer(200, headers, encode_json(known_fields(known)))
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        record = record_fields(placed.id, placed.head, placed.request, None, placed.journal, started=placed.agent_links)
        return Answer(202, headers, encode_json(record))

    async def result(self, request: Request) -> Answer:
        """200 the result's own bytes and type, 424 the failure, 202 with the record while it runs."""
        principal = self._auth.authenticate(request.headers)
        operation = request.raw_path[len(PATH) + 1 : -len(RESULT)].decode("latin-1")
        wait = request.arguments().get("wait", "")
        known = await self._operations.result(operation, principal.namespace, self._wait_s(wait))
        if known.state.terminal and known.outcome is not None:
            link = operation_link(self._public_url, operation).encode()
            answer = nexus_answer(operation, known.state, known.outcome, link, known.links, first=False)
            return answer._replace(headers=[*answer.headers, (b"cache-control", b"no-store")])
        headers = [
            _JSON,
            (b"location", b"/v1/operations/" + operation.encode()),
            (b"retry-after", b"%d" % RETRY_AFTER_S),
            (b"cache-control", b"no-store"),
        ]
        return Answer(202, headers, encode_json(known_fields(known)))

    def _wait_s(self, text: str) -> float:
        if not text:
            return 0
        try:
            wait_s = float(text.removesuffix("s"))
        except ValueError:
            wait_s = -1
        if not 0 <= wait_s < TIMEOUT_MS_MAX:
            raise Malformed("wait is a number of seconds, such as wait=30", code="wait_invalid")
        return min(wait_s, self._wait_max_ms / 1000)


def _parent(parent: ParentBody) -> Parent:
    if not 1 <= len(parent.key.encode()) <= PARENT_KEY_BYTES_MAX:
        raise _breach("/parent/key", f"the key has 1 to {PARENT_KEY_BYTES_MAX} bytes")
    return Parent(parent.token, parent.key, parent.on_close == "cancel")


def _callback_headers(callback: CallbackBody) -> list[tuple[bytes, bytes]]:
    try:
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in callback.headers.items()]
    except UnicodeEncodeError:
        raise _breach("/callback/headers", "callback headers are visible ASCII") from None
    try:
        return check_callback_headers(raw)
    except Malformed as error:
        raise _breach("/callback/headers", error.detail) from None
