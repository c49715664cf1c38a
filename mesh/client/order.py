"""What a caller means: an operation with the codecs of its types, an order to start it, a record of it. Pure.

Reads the many ways to name an operation; says nothing to anybody (flow.py does).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import nexusrpc

from mesh.agent.codec import Codec
from mesh.errors import ConfigError
from mesh.ids import secret_bytes


class DataRef(TypedDict):
    """A large input or result (P392)."""

    url: str
    digest: str
    bytes: int
    content_type: str | None


class Record(TypedDict):
    """An operation as /v1 shows it (P65). Times are RFC 3339; `result` only when it ended and is JSON."""

    id: str
    state: str
    run: int
    attempt: int
    endpoint: str
    service: str
    operation: str
    namespace: str
    labels: dict[str, str]
    created_at: str
    updated_at: str
    closed_at: str | None
    deadline: str | None
    events: int
    starts_at: NotRequired[str]
    blocked: NotRequired[str]
    blocked_why: NotRequired[str]
    version: NotRequired[str]
    cancel_requested: NotRequired[bool]
    next_attempt_at: NotRequired[str]
    instance: NotRequired[str]
    last_failure: NotRequired[dict[str, Any]]
    callback: NotRequired[dict[str, Any]]
    idempotency_key: NotRequired[str]
    links: NotRequired[list[dict[str, str]]]
    trace: NotRequired[dict[str, str]]
    input_dataref: NotRequired[DataRef]
    result: NotRequired[Any]
    result_dataref: NotRequired[DataRef]
    result_base64: NotRequired[str]
    result_type: NotRequired[str | None]
    failure: NotRequired[dict[str, Any]]


class Page(NamedTuple):
    """A page of a list; `next_cursor` is None on the last one."""

    items: list[Record]
    next_cursor: str | None


class Called(NamedTuple):
    """An operation of a service, with the codecs of its types."""

    service: str
    operation: str
    input: Codec
    output: Codec


class Order(NamedTuple):
    """All of a start. Timeouts in milliseconds; `callback` a URL or `{url, headers?, format?}`.

    `begin`: `delay_ms` or `start_at` of one that begins later, `priority`. `version`: of the agent that must run it.
    """

    endpoint: str
    called: Called
    value: Any
    key: str
    callback: str | Mapping[str, Any] | None
    timeouts: dict[str, int]
    labels: Mapping[str, str] | None
    headers: Mapping[str, str]
    begin: Mapping[str, Any] = {}
    version: str | None = None


@lru_cache(maxsize=1024)
def _codec(type_: Any) -> Codec:
    return Codec(type_)


def codec_of(type_: Any) -> Codec:
    """The codec of a type; types that cannot be hashed are read anew each time."""
    try:
        return _codec(type_)
    except TypeError:
        return Codec(type_)


def called(what: tuple[Any, ...], output: Any) -> tuple[Called, tuple[Any, ...]]:
    """Read `(operation, ...)` or `(service, operation, ...)`; gives the rest of `what` too. Raises ConfigError.

    A service is a name or a class decorated with `@nexusrpc.service`, an operation a name or an attribute of such a
    class.
    """
    first, *rest = what or (None,)
    service: str | None = None
    if isinstance(first, type):
        definition = nexusrpc.get_service_definition(first)
        if definition is None:
            message = f"{first!r} is no service: decorate it with @nexusrpc.service"
            raise ConfigError(message)
        service = definition.name
    elif isinstance(first, str):
        service = first
    else:
        rest = [first, *rest]
    operation, *rest = rest or (None,)
    if isinstance(operation, nexusrpc.Operation):
        known = cast("nexusrpc.Operation[Any, Any]", operation)
        owner = getattr(known, "service", None)  # nexus-rpc before 1.5 does not know it
        service = service or (owner.name if owner is not None else None)
        if service is None:
            message = f"operation {known.name} does not know its service: pass the contract class in front of it"
            raise ConfigError(message)
        return Called(service, known.name, codec_of(known.input_type), codec_of(known.output_type)), tuple(rest)
    if service is None or not isinstance(operation, str):
        message = "name an operation: Contract.operation, or a service and an operation"
        raise ConfigError(message)
    return Called(service, operation, codec_of(Any), codec_of(output)), tuple(rest)


def handle_repr(handle: object, operation_id: str, record: Record) -> str:
    """How a handle shows itself: its id, and what was known of the operation when the handle was made."""
    known = {"state": record.get("state"), **{name: record.get(name) for name in ("endpoint", "operation")}}
    shown = "".join(f" {name}={value!r}" for name, value in known.items() if value)
    return f"<{type(handle).__name__} {operation_id}{shown}>"


def new_key() -> str:
    """An idempotency key for a call whose caller gave none: 128 random bits."""
    return secret_bytes(16).hex()
