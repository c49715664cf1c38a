"""What a client says to a gateway, without saying it: each verb is a generator of steps, the same for both clients.

A step is an `Ask` (answered with an `Answer`, or with `Unreached` when no reply came) or a `Pause`. Owns paths, bodies,
the repeats and their bounds. Does no I/O: aio.py does.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from mesh.agent.codec import BYTES, Codec, Undecodable
from mesh.client.errors import UNSUCCESSFUL, GatewayUnreachable, OperationFailed, StillRunning, refusal
from mesh.client.order import Order, Page, Record
from mesh.clock import monotonic_s
from mesh.errors import ConfigError, MeshError, ReplyInvalid, TooMany, Unavailable
from mesh.ids import jittered
from mesh.wire import quote_segment

WAIT_S: Final = 20
"""One long poll; proxies in between cut connections that stay quiet for longer."""
RETRY_FOR_S: Final = 30.0
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
RETRY_SPREAD: Final = 0.2
RETRY_AFTER_MAX_S: Final = 30
REPLY_TIMEOUT_S: Final = 10.0
"""Beyond the wait that was asked for."""
REPEATED: Final = frozenset({429, 502, 503, 504})
"""Statuses that are repeated unless the answer itself says that it is no use."""
AWAY: Final = frozenset({502, 503, 504})
"""Of a gateway that another one may stand in for."""

T = TypeVar("T")


class Ask(NamedTuple):
    """One request. `path` has its query; `timeout_s` bounds the reply."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    timeout_s: float


class Answer(NamedTuple):
    """A reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Unreached(NamedTuple):
    """No reply; the request may have arrived or not."""

    why: str


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Flow: TypeAlias = Generator["Ask | Pause", "Answer | Unreached | None", T]


class Placed(NamedTuple):
    """An accepted start. `raw` are the record's fields as they came, for what is decoded by type."""

    id: str
    record: Record
    raw: dict[str, msgspec.Raw]
    replayed: bool


_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# -- verbs


def start_fields(order: Order, media_type: str | None, body: bytes) -> dict[str, Any]:
    """The JSON of a start with the encoded input `body`; `media_type` None: no input."""
    fields: dict[str, Any] = {
        "endpoint": order.endpoint,
        "service": order.called.service,
        "operation": order.called.operation,
    }
    if media_type is not None:
        fields["input"] = msgspec.Raw(body)
    if order.callback is not None:
        fields["callback"] = {"url": order.callback} if isinstance(order.callback, str) else dict(order.callback)
    if order.timeouts:
        fields["timeouts"] = order.timeouts
    if order.labels:
        fields["labels"] = dict(order.labels)
    return {**fields, **order.begin}


def start(order: Order, wait_s: float, retry_for_s: float) -> Flow[Placed]:
    """Accepted and durable, or a refusal. `wait_s` > 0: the answer may already be the end."""
    try:
        media_type, body = order.called.input.encode(order.value)
    except Undecodable as error:
        message = f"the input is not what {order.called.operation} takes: {error}"
        raise ConfigError(message, code="input_invalid") from None
    if media_type == BYTES:
        return (yield from _start_bytes(order, body, retry_for_s))
    fields = start_fields(order, media_type, body)
    headers = {
        **order.headers,
        "content-type": "application/json",
        "idempotency-key": order.key,
        "prefer": f"wait={max(1, round(wait_s))}" if wait_s > 0 else "respond-async",
    }
    ask = Ask("POST", "/v1/operations", headers, msgspec.json.encode(fields), wait_s + REPLY_TIMEOUT_S)
    answer = yield from exchange(ask, retry_for_s)
    raw = _object(answer)
    record = _record(answer)
    return Placed(record["id"], record, raw, answer.headers.get("idempotency-replayed") == "true")


def _start_bytes(order: Order, body: bytes, retry_for_s: float) -> Flow[Placed]:
    """Bytes are no JSON: they go by the Nexus surface, which knows neither labels nor the other timeouts."""
    if order.labels or set(order.timeouts) - {"schedule_to_close_ms"} or not isinstance(order.callback, str | None):
        message = "an input of bytes cannot have labels, callback headers or timeouts but schedule_to_close_ms"
        raise ConfigError(message)
    names = (order.endpoint, order.called.service, order.called.operation)
    endpoint, service, operation = (quote_segment(name) for name in names)
    query = f"?callback={quote(order.callback, safe='')}" if order.callback else ""
    headers = {
        **order.headers,
        "content-type": BYTES,
        "nexus-request-id": order.key,
        "prefer": "respond-async",
    }
    if order.timeouts:
        headers["operation-timeout"] = f"{order.timeouts['schedule_to_close_ms']}ms"
    if "delay_ms" in order.begin:
        headers["mesh-delay"] = f"{order.begin['delay_ms']}ms"
    if "start_at" in order.begin:
        headers["mesh-start-at"] = order.begin["start_at"]
    path = f"/nexus/endpoints/{endpoint}/services/{service}/{operation}{query}"
    answer = yield from exchange(Ask("POST", path, headers, body, REPLY_TIMEOUT_S), retry_for_s, any_status=True)
    operation_id = answer.headers.get("mesh-operation-id", "")
    # Whatever an operation that is over answers comes through as it is; only the gateway's own faults are refusals.
    if not operation_id or answer.headers.get("mesh-failure-source") == "gateway":
        raise refusal(answer.status, answer.body, 0)
    record = yield from get(operation_id, retry_for_s)
    return Placed(operation_id, record, {}, answer.headers.get("idempotency-replayed") == "true")


def call(order: Order, timeout_s: float | None, retry_for_s: float) -> Flow[Any]:
    """Start and wait for the result, by type."""
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    wait_s = WAIT_S if timeout_s is None else min(WAIT_S, timeout_s)
    placed = yield from start(order, wait_s, retry_for_s if timeout_s is None else min(retry_for_s, timeout_s))
    if placed.record["state"] == "succeeded" and "result" in placed.raw:
        return _decode(order.called.output, placed.id, "application/json", bytes(placed.raw["result"]))
    left_s = None if until_s is None else until_s - monotonic_s()
    return (yield from result(placed.id, order.called.output, left_s, retry_for_s))


def result(operation_id: str, output: Codec, timeout_s: float | None, retry_for_s: float) -> Flow[Any]:
    """Long polls until the operation ended. Raises OperationUnsuccessful, StillRunning."""
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    while True:
        wait_s = WAIT_S if until_s is None else max(0.0, min(WAIT_S, until_s - monotonic_s()))
        path = f"{_path(operation_id)}/result?wait={wait_s:.3f}"
        patience_s = retry_for_s if until_s is None else max(0.0, min(retry_for_s, until_s - monotonic_s()))
        try:
            answer = yield from exchange(Ask("GET", path, {}, b"", wait_s + REPLY_TIMEOUT_S), patience_s, also=(424,))
        except (TooMany, Unavailable) as trouble:
            if patience_s < retry_for_s:
                raise StillRunning(operation_id) from trouble  # it was the caller's patience that ended
            raise
        if answer.status == 200:  # noqa: PLR2004
            return _decode(output, operation_id, answer.headers.get("content-type"), answer.body)
        if answer.status == 424:  # noqa: PLR2004
            # The Nexus wire knows failed and canceled only; the record says whether time ran out.
            record = yield from get(operation_id, retry_for_s)
            raise UNSUCCESSFUL.get(record["state"], OperationFailed)(operation_id, _failure(answer))
        if until_s is not None and monotonic_s() >= until_s:
            raise StillRunning(operation_id)


def get(operation_id: str, retry_for_s: float) -> Flow[Record]:
    """The record."""
    answer = yield from exchange(Ask("GET", _path(operation_id), {}, b"", REPLY_TIMEOUT_S), retry_for_s)
    return _record(answer)


def cancel(operation_id: str, retry_for_s: float) -> Flow[Record]:
    """Ask for the end; the record as it is then."""
    path = f"{_path(operation_id)}/cancel"
    answer = yield from exchange(Ask("POST", path, {}, b"", REPLY_TIMEOUT_S), retry_for_s)
    return _record(answer)


def listing(filters: Mapping[str, Any], labels: Mapping[str, str] | None, retry_for_s: float) -> Flow[Page]:
    """One page, newest first."""
    query = {name: value for name, value in filters.items() if value is not None}
    query |= {f"label.{name}": value for name, value in (labels or {}).items()}
    path = f"/v1/operations?{urlencode(query)}" if query else "/v1/operations"
    page = _json((yield from exchange(Ask("GET", path, {}, b"", REPLY_TIMEOUT_S), retry_for_s)))
    try:
        return Page(page["items"], page["next_cursor"])
    except (KeyError, TypeError):
        raise ReplyInvalid("the gateway answered something else than a page") from None


def events_path(operation_id: str) -> str:
    """Where the event stream is."""
    return f"{_path(operation_id)}/events"


def stream_path(operation_id: str) -> str:
    """Where the stream of what the handler emits is."""
    return f"{_path(operation_id)}/stream"


# -- asking


def exchange(ask: Ask, retry_for_s: float, *, also: tuple[int, ...] = (), any_status: bool = False) -> Flow[Answer]:
    """Ask until there is an answer for good; safe, since every start carries its key and all else is idempotent.

    Faults, REPEATED statuses and others from 500 up that are marked retryable are repeated for `retry_for_s`, never
    before `Retry-After`. Raises the refusal of any other status from 400 up, unless it is in `also`.
    """
    give_up_s = monotonic_s() + retry_for_s
    delay_s = RETRY_FIRST_S
    while True:
        answer = yield ask
        after_s = 0
        if isinstance(answer, Answer):
            after_s = _retry_after_s(answer)
            if not _repeated(answer) or (any_status and _of_operation(answer)):
                if answer.status < 400 or any_status or answer.status in also:  # noqa: PLR2004
                    return answer
                raise refusal(answer.status, answer.body, after_s)
            trouble: MeshError = refusal(answer.status, answer.body, after_s)
        else:
            trouble = GatewayUnreachable(answer.why if answer is not None else "no answer")
        pause_s = max(jittered(delay_s * 1000, RETRY_SPREAD) / 1000, min(after_s, RETRY_AFTER_MAX_S))
        if monotonic_s() + pause_s > give_up_s:
            raise trouble
        yield Pause(pause_s)
        delay_s = min(delay_s * 2, RETRY_MAX_S)


def _repeated(answer: Answer) -> bool:
    if answer.status not in REPEATED and answer.status < 500:  # noqa: PLR2004
        return False
    marked = _marked(answer)
    return answer.status in REPEATED if marked is None else marked


def _of_operation(answer: Answer) -> bool:
    """Whether it is how an operation ended, which the gateway passes on, and not the gateway's own."""
    headers = answer.headers
    return "mesh-operation-id" in headers and headers.get("mesh-failure-source") != "gateway"


def _marked(answer: Answer) -> bool | None:
    """What the answer says of its own repetition: `retryable` of a problem, or the header of Nexus answers."""
    if answer.headers.get("content-type", "").partition(";")[0] == "application/problem+json":
        try:
            said = json.loads(answer.body).get("retryable")
        except (ValueError, AttributeError):
            said = None
        return said if isinstance(said, bool) else None
    return {"true": True, "false": False}.get(answer.headers.get("nexus-request-retryable", "").lower())


def _retry_after_s(answer: Answer) -> int:
    text = answer.headers.get("retry-after", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0  # noqa: PLR2004


def _path(operation_id: str) -> str:
    return f"/v1/operations/{quote_segment(operation_id)}"


def _object(answer: Answer) -> dict[str, msgspec.Raw]:
    try:
        return _fields(answer.body)
    except msgspec.MsgspecError:
        raise ReplyInvalid("the gateway answered something else than a record") from None


def _record(answer: Answer) -> Record:
    record = _json(answer)
    fields = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    if not isinstance(fields.get("id"), str) or not isinstance(fields.get("state"), str):
        raise ReplyInvalid("the gateway answered something else than a record")
    return cast("Record", record)


def _failure(answer: Answer) -> dict[str, Any]:
    failure = _json(answer)
    if not isinstance(failure, dict):
        raise ReplyInvalid("the gateway answered something else than a Failure")
    return cast("dict[str, Any]", failure)


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError:
        raise ReplyInvalid("the gateway answered something else than JSON") from None


def _decode(output: Codec, operation_id: str, content_type: str | None, body: bytes) -> Any:
    try:
        return output.decode(content_type, body)
    except Undecodable as error:
        raise ReplyInvalid(f"the result of operation {operation_id} is not what its contract says: {error}") from None
