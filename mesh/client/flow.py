"""What a client says to a gateway, without saying it: each verb is a generator of steps, the same for both clients.

Owns paths and bodies; what a step is, and how a request is repeated, is asking.py. Does no I/O: aio.py does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote, urlencode

import msgspec

from mesh.agent.codec import BYTES, Codec, Undecodable
from mesh.blob import Blob
from mesh.client.asking import Answer, Ask, Flow, exchange
from mesh.client.errors import UNSUCCESSFUL, OperationFailed, StillRunning, refusal
from mesh.client.order import Order, Page, Record
from mesh.client.patience import Patience, lacks_failure
from mesh.clock import monotonic_s
from mesh.errors import ConfigError, Malformed, MeshError, ReplyInvalid, TooMany, Unavailable
from mesh.wire import check_key, quote_segment
from mesh.wire.digests import digest_field

WAIT_S: Final = 20
"""One long poll; proxies in between cut connections that stay quiet for longer."""
RETRY_FOR_S: Final = 30.0
REPLY_TIMEOUT_S: Final = 10.0
"""Beyond the wait that was asked for."""
LOOK_TIMEOUT_S: Final = 5.0
"""For a second look at what a call waits for; its result does not hang on it."""
LARGE_BYTES: Final = 1 << 20
"""JSON above this does not go inside an order: gateways bound what they read as one."""
SLOWEST_BYTES_PER_S: Final = 4 << 20

class Placed(NamedTuple):
    """An accepted start. `raw` are the record's fields as they came, for what is decoded by type."""

    id: str
    record: Record
    raw: dict[str, msgspec.Raw]
    replayed: bool


_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# -- verbs


def start(order: Order, wait_s: float, retry_for_s: float) -> Flow[Placed]:
    """Accepted and durable, or a refusal. `wait_s` > 0: the answer may already be the end."""
    _check_key(order.key)
    if isinstance(order.value, Blob) and order.called.input.takes_blobs:
        return (yield from _start_large(order, order.value, wait_s, retry_for_s))
    try:
        media_type, body = order.called.input.encode(order.value)
    except Undecodable as error:
        message = f"the input is not what {order.called.operation} takes: {error}"
        raise ConfigError(message, code="input_invalid") from None
    if media_type == BYTES:
        return (yield from _start_bytes(order, body, retry_for_s))
    if len(body) > LARGE_BYTES:
        return (yield from _start_large(order, Blob(data=body, content_type=media_type), wait_s, retry_for_s))
    fields = start_fields(order, media_type, body)
    headers = {**_headers_of(order, wait_s), "content-type": "application/json"}
    ask = Ask("POST", "/v1/operations", headers, msgspec.json.encode(fields), wait_s + REPLY_TIMEOUT_S)
    return _placed((yield from exchange(ask, retry_for_s)))


def _start_large(order: Order, blob: Blob, wait_s: float, retry_for_s: float) -> Flow[Placed]:
    """The order goes in a header, so that the input can be streamed (P391)."""
    size = blob.size
    headers = {
        **_headers_of(order, wait_s),
        # Of a header's characters only: what is no ASCII is escaped.
        "mesh-start": json.dumps(start_fields(order, None, b"")),
        "content-length": str(size),
        "content-digest": digest_field(blob.sha256),
    }
    if blob.content_type is not None or size:
        headers["content-type"] = blob.content_type or BYTES
    timeout_s = wait_s + REPLY_TIMEOUT_S + size / SLOWEST_BYTES_PER_S
    return _placed((yield from exchange(Ask("POST", "/v1/operations", headers, blob, timeout_s), retry_for_s)))


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
    if order.version is not None:
        fields["version"] = order.version
    return {**fields, **order.begin}


def _headers_of(order: Order, wait_s: float) -> dict[str, str]:
    return {
        **order.headers,
        "idempotency-key": order.key,
        "prefer": f"wait={max(1, round(wait_s))}" if wait_s > 0 else "respond-async",
    }


def _check_key(key: str) -> None:
    """What would not even fit in a header is refused as the gateway refuses all other keys that are none."""
    try:
        check_key(key)
    except Malformed as error:
        raise Malformed(f"idempotency_key={key[:64]!r}: {error.detail}", code=error.code) from None


def _placed(answer: Answer) -> Placed:
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
    if order.version is not None:
        headers["mesh-version"] = order.version
    if "delay_ms" in order.begin:
        headers["mesh-delay"] = f"{order.begin['delay_ms']}ms"
    if "priority" in order.begin:
        headers["mesh-priority"] = str(order.begin["priority"])
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
    patience = Patience()
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    wait_s = patience.poll_s(WAIT_S if timeout_s is None else min(WAIT_S, timeout_s))
    placed = yield from start(order, wait_s, retry_for_s if timeout_s is None else min(retry_for_s, timeout_s))
    if placed.record["state"] == "succeeded" and "result" in placed.raw and not order.called.output.blob:
        return _decode(order.called.output, placed.id, "application/json", bytes(placed.raw["result"]))
    patience.look((yield from _looked(placed.record)) if patience.due(placed.record) else placed.record)
    left_s = None if until_s is None else until_s - monotonic_s()
    return (yield from result(placed.id, order.called.output, left_s, retry_for_s, patience))


def result(
    operation_id: str, output: Codec, timeout_s: float | None, retry_for_s: float, patience: Patience | None = None
) -> Flow[Any]:
    """Long polls until the operation ended; why it waits is logged. Raises OperationUnsuccessful, StillRunning."""
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    patience = patience or Patience()
    while True:
        wait_s = patience.poll_s(WAIT_S if until_s is None else max(0.0, min(WAIT_S, until_s - monotonic_s())))
        path = f"{_path(operation_id)}/result?wait={wait_s:.3f}"
        repeat_s = retry_for_s if until_s is None else max(0.0, min(retry_for_s, until_s - monotonic_s()))
        try:
            ask = Ask("GET", path, {}, b"", wait_s + REPLY_TIMEOUT_S, output.blob)
            answer = yield from exchange(ask, repeat_s, also=(424,))
        except (TooMany, Unavailable) as trouble:
            if repeat_s < retry_for_s:
                raise StillRunning(operation_id, patience.why) from trouble  # it was the caller's patience that ended
            raise
        if answer.blob is not None:
            return answer.blob
        if answer.status == 200:  # noqa: PLR2004
            return _decode(output, operation_id, answer.headers.get("content-type"), answer.body)
        if answer.status == 424:  # noqa: PLR2004
            # The Nexus wire knows failed and canceled only; the record says whether time ran out.
            record = yield from get(operation_id, retry_for_s)
            raise UNSUCCESSFUL.get(record["state"], OperationFailed)(operation_id, _failure(answer))
        record, over = _record(answer), until_s is not None and monotonic_s() >= until_s
        patience.look((yield from _looked(record)) if over or patience.due(record) else record)
        if over:
            raise StillRunning(operation_id, patience.why)


def _looked(record: Record) -> Flow[Record]:
    """`record`, with how its last attempt failed if that is why it waits and the gateway tells."""
    if not lacks_failure(record):
        return record
    try:
        found = _record((yield from exchange(Ask("GET", _path(record["id"]), {}, b"", LOOK_TIMEOUT_S), 0)))
    except MeshError:
        return record
    return found if found["state"] == record["state"] else record


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
