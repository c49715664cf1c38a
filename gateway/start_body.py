"""The body of a start: its fields, and the order that they amount to.

Owns what `POST /v1/operations` takes, for itself, for each line of a batch and for the template of a schedule. Knows
neither routes nor the registry. Pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec.structs import replace

from gateway.body_fields import body_invalid, read_fields
from gateway.callbacks import FORMATS, NEXUS
from gateway.orders import Later, Order, Parent
from gateway.payloads import DIGESTS
from mesh.clock import now_ms
from mesh.errors import Conflict, Malformed, MeshError, Unprocessable
from mesh.wire import (
    check_callback_headers,
    check_endpoint,
    check_operation,
    check_service,
    parse_rfc3339,
)
from registry.choice import VERSION
from registry.spec import check_version

if TYPE_CHECKING:

    from mesh.wire import CallerHeaders

TIMEOUT_MS_MAX: Final = 365 * 86_400_000
LABELS_MAX: Final = 16
LABEL_CHARS_MAX: Final = 128
PARENT_KEY_BYTES_MAX: Final = 1_024
MESH_START: Final = b"mesh-start"
"""The header that has the order as JSON when the body of the request is the input itself (P391)."""
_OF_ORDER: Final = DIGESTS | {b"accept"}
"""Headers that are about the order and its answer, and not about the input."""
PRIORITY_MAX: Final = 9


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


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

    endpoint: Annotated[str, _says("name or id of the endpoint")]
    service: Annotated[str, _says("of that endpoint")]
    operation: Annotated[str, _says("of that service")]
    input: Annotated[msgspec.Raw | msgspec.UnsetType, _says("any JSON; absent is null without a type")] = msgspec.UNSET
    callback: Annotated[CallbackBody | None, _says("is told the outcome, at least once, signed")] = None
    timeouts: Annotated[TimeoutsBody | None, _says("in ms; left out, the endpoint's policy says")] = None
    labels: Annotated[dict[str, str], _says("16 at most, of 128 characters; lists filter by them")] = {}
    parent: Annotated[ParentBody | None, _says("the running attempt whose child it is")] = None
    delay_ms: Annotated[int | None, _says("it begins so long after its acceptance, up to a year")] = None
    start_at: Annotated[str | None, _says("it begins then, RFC 3339; what is past is at once")] = None
    version: Annotated[str | None, _says("only instances of this version run it; while none lives it waits")] = None
    priority: Annotated[int, _says("0 to 9, 9 goes first in its namespace; a level is worth 10 s of waiting")] = 0


_decoder = msgspec.json.Decoder(StartBody)


def read_start(body: bytes) -> StartBody:
    """Of strict JSON. Raises Malformed and Unprocessable with pointers."""
    return read_fields(body, _decoder)


def as_v1(refusal: MeshError) -> MeshError:
    """A key used for other content is 409 on the Nexus surface, 422 on /v1 (P62, httpapi draft 07)."""
    if not isinstance(refusal, Conflict) or refusal.code != "key_reused":
        return refusal
    return Unprocessable(refusal.detail, code=refusal.code, operation_id=refusal.operation_id)


def _timeouts(timeouts: TimeoutsBody) -> tuple[int, int, int, int]:
    """In the order of the fields; 0: as the endpoint's policy says."""
    return (
        _timeout("schedule_to_close_ms", timeouts.schedule_to_close_ms),
        _timeout("schedule_to_start_ms", timeouts.schedule_to_start_ms),
        _timeout("start_to_close_ms", timeouts.start_to_close_ms),
        _timeout("request_timeout_ms", timeouts.request_timeout_ms),
    )


def _timeout(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if not 1 <= value <= TIMEOUT_MS_MAX:
        raise body_invalid(f"/timeouts/{name}", f"{name} is between 1 and {TIMEOUT_MS_MAX} ms")
    return value


@lru_cache(maxsize=1024)
def _check_names(endpoint: str, service: str, operation: str) -> None:
    """The same few come again and again; what is refused is not remembered."""
    for pointer, check, value in (
        ("/endpoint", check_endpoint, endpoint),
        ("/service", check_service, service),
        ("/operation", check_operation, operation),
    ):
        try:
            check(value)
        except Malformed as error:
            raise body_invalid(pointer, error.detail) from None


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise body_invalid("/labels", f"there are at most {LABELS_MAX} labels")
    for name, value in labels.items():
        if not name or len(name) > LABEL_CHARS_MAX or len(value) > LABEL_CHARS_MAX:
            raise body_invalid("/labels", f"label names and values have at most {LABEL_CHARS_MAX} characters")


def _priority(priority: int) -> int:
    if not 0 <= priority <= PRIORITY_MAX:
        raise body_invalid("/priority", f"priority is between 0 and {PRIORITY_MAX}; {PRIORITY_MAX} goes first")
    return priority


def later_of(delay_ms: int | None, start_at: str | None) -> Later | None:
    """When it is to begin; None: at once. Raises Unprocessable."""
    if start_at is None:
        if delay_ms is None:
            return None
        if not 0 <= delay_ms <= TIMEOUT_MS_MAX:
            raise body_invalid("/delay_ms", f"delay_ms is between 0 and {TIMEOUT_MS_MAX} ms")
        return Later(delay_ms) if delay_ms else None
    if delay_ms is not None:
        raise body_invalid("/start_at", "delay_ms and start_at exclude each other")
    try:
        at_ms = parse_rfc3339(start_at)
    except Malformed:
        detail = "start_at is an RFC 3339 time with its zone, such as 2026-11-22T10:00:00Z"
        raise body_invalid("/start_at", detail) from None
    if at_ms > now_ms() + TIMEOUT_MS_MAX:
        raise body_invalid("/start_at", f"start_at is at most {TIMEOUT_MS_MAX} ms away")
    return Later(0, at_ms)


def read_order(body: StartBody, namespace: str, headers: CallerHeaders) -> Order:
    """What `body` asks for, checked as far as that can be said without the registry. Raises Unprocessable."""
    _check_names(body.endpoint, body.service, body.operation)
    if body.labels:
        _check_labels(body.labels)
    timeouts = body.timeouts
    close_ms, start_ms, run_ms, request_ms = (0, 0, 0, 0) if timeouts is None else _timeouts(timeouts)
    content = None if body.input is msgspec.UNSET else bytes(body.input)
    callback = body.callback
    if callback is not None and callback.format not in FORMATS:
        raise body_invalid("/callback/format", f"the format is one of {', '.join(FORMATS)}")
    return Order(
        namespace,
        body.endpoint,
        body.service,
        body.operation,
        None if content is None else "application/json",
        content or b"",
        headers.key,
        [one for one in headers.forwarded if one[0] not in _OF_ORDER] if headers.forwarded else [],
        "/input",
        callback.url if callback else "",
        callback.format if callback else NEXUS,
        _callback_headers(callback) if callback else [],
        close_ms,
        start_ms,
        run_ms,
        request_ms,
        body.labels,
        headers.links,
        parent=_parent(body.parent) if body.parent else None,
        priority=_priority(body.priority) if body.priority else 0,
        later=None if body.delay_ms is None and body.start_at is None else later_of(body.delay_ms, body.start_at),
        pin="" if body.version is None else _pin(body.version, "/version"),
    )


def beside(
    body: StartBody, namespace: str, headers: CallerHeaders, content_type: bytes | None, content: bytes | None
) -> Order:
    """The order of MESH_START, with the body of the request as its input; `content` None: it has none.

    Raises Unprocessable.
    """
    if not isinstance(body.input, msgspec.UnsetType):
        raise body_invalid("/input", f"with {MESH_START.decode().title()} the input is the body of the request")
    order = replace(read_order(body, namespace, headers), input_at="")
    if content is None and content_type is None:
        return order
    content_type = content_type or b"application/octet-stream"
    return replace(order, content_type=content_type.decode("latin-1"), body=content or b"")


def _pin(version: str, at: str) -> str:
    try:
        return VERSION + check_version(version)
    except Malformed as error:
        raise body_invalid(at, error.detail) from None


def _parent(parent: ParentBody) -> Parent:
    if not 1 <= len(parent.key.encode()) <= PARENT_KEY_BYTES_MAX:
        raise body_invalid("/parent/key", f"the key has 1 to {PARENT_KEY_BYTES_MAX} bytes")
    return Parent(parent.token, parent.key, parent.on_close == "cancel")


def _callback_headers(callback: CallbackBody) -> list[tuple[bytes, bytes]]:
    try:
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in callback.headers.items()]
    except UnicodeEncodeError:
        raise body_invalid("/callback/headers", "callback headers are visible ASCII") from None
    try:
        return check_callback_headers(raw)
    except Malformed as error:
        raise body_invalid("/callback/headers", error.detail) from None
