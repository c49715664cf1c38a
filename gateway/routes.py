"""The FastAPI routes about operations, deliveries and the gateway itself, but for the hot ones (declared.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from msgspec.structs import replace

from gateway.details import details
from gateway.listing import LIMIT_DEFAULT, LIMIT_MAX, Filters, redeliver
from gateway.outcomes import encode_json, known_fields
from gateway.query import bad_parameter, check_query
from gateway.queues import families
from mesh.errors import Malformed
from mesh.ids import is_operation_id
from mesh.machine import Delivery, Kind, State
from mesh.wire import parse_rfc3339

if TYPE_CHECKING:
    from gateway.app import Mesh

PING_S: Final = 15.0
RETRY_MS: Final = 1_000

router = APIRouter()
_JSON: Final = "application/json"
_NO_STORE: Final = {"cache-control": "no-store"}
_STATES: Final = {state.word: state for state in State}
_DELIVERY_STATES: Final = {state.word: state for state in Delivery if state is not Delivery.NONE}
_sequence: Final = re.compile(r"[0-9]{1,9}").fullmatch


def mesh_of(request: Request) -> Mesh:
    """The gateway's collaborators."""
    return request.app.state.mesh


def _namespace(request: Request) -> str:
    return mesh_of(request).auth.authenticate(request.scope["headers"]).namespace


def _reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(body), status, headers, _JSON)


# Operations -------------------------------------------------------------------------------------------------------


def _word(table: dict[str, Any], text: str, name: str, *more: str) -> Any:
    """`more`: words that are taken too."""
    try:
        return table[text]
    except KeyError:
        raise bad_parameter(name, f"is one of {', '.join([*table, *more])}") from None


def _time(text: str, name: str, default: int) -> int:
    if not text:
        return default
    try:
        return parse_rfc3339(text)
    except Malformed:
        raise bad_parameter(name, "is an RFC 3339 time such as 2026-11-22T10:00:00Z") from None


@router.get("/v1/operations", tags=["operations"], summary="List operations, newest first")
async def list_operations(
    request: Request,
    state: str = "",
    endpoint: str = "",
    service: str = "",
    operation: str = "",
    since: str = "",
    until: str = "",
    parent: str = "",
    canary: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    cursor: str = "",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
) -> Response:
    """`state` may name several with commas; labels as `label.name=value`; `parent`: what its handler started.

    With filters a page may be short, or empty, and have a `next_cursor`: it is the end only when that is null.
    `canary=true`: what the mesh started to test instances, instead of what callers started.
    """
    namespace = _namespace(request)
    check_query(request, labels=True)
    if parent and not is_operation_id(parent):
        raise bad_parameter("parent", "is the id of an operation")
    words = [word for word in state.split(",") if word]
    if "running" in words:
        words = [word for word in words if word != "running"] + ["scheduled", "backing_off", "started"]
    labels = {name[6:]: value for name, value in request.query_params.items() if name.startswith("label.")}
    filters = Filters(
        frozenset(_word(_STATES, word, "state", "running") for word in words),
        endpoint,
        service,
        operation,
        labels,
        _time(since, "since", 0),
        _time(until, "until", 1 << 53),
        parent,
        canary,
    )
    return _reply(await mesh_of(request).listing.operations(namespace, filters, cursor, limit))


@router.get("/v1/operations/{operation_id}", tags=["operations"], summary="One operation")
async def get_operation(request: Request, operation_id: str) -> Response:
    """The record, with result or failure once it ended, and what `details` says; `ETag` moves with every event."""
    mesh = mesh_of(request)
    known = await mesh.operations.whole(operation_id, _namespace(request))
    head = known.head
    sent_to = mesh.courier.sent_to(operation_id) if head.start == Delivery.LEASED else ""
    seen = (head.run, head.seq + known.journal, head.callback, head.callback_tries, int(bool(sent_to)))
    etag = f'"{".".join(map(str, (*seen, known.beat.after_ms if known.beat else 0)))}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    body = known_fields(known)
    body |= details(known, sent_to)
    return _reply(body, headers={"etag": etag, **_NO_STORE})


@router.post("/v1/operations/{operation_id}/cancel", tags=["operations"], summary="Cancel", status_code=202)
async def cancel_operation(request: Request, operation_id: str) -> Response:
    """202, repeats and ended operations too; a cancel after the end changes nothing."""
    mesh = mesh_of(request)
    namespace = _namespace(request)
    await mesh.operations.cancel(operation_id, namespace)
    known = await mesh.operations.get(operation_id, namespace)
    return _reply(known_fields(replace(known, outcome=None)), 202)


# Deliveries -------------------------------------------------------------------------------------------------------


@router.get("/v1/deliveries", tags=["deliveries"], summary="What is owed, and what died")
async def list_deliveries(
    request: Request,
    state: str = "",
    kind: str = "",
    cursor: str = "",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
) -> Response:
    """Starts, cancels and callbacks; `state=dead` is the dead letter. `why`: what came of the last try that failed."""
    namespace = _namespace(request)
    check_query(request)
    wanted = _word(_DELIVERY_STATES, state, "state") if state else None
    kinds: dict[str, Kind] = {str(one): one for one in Kind}
    which = _word(kinds, kind, "kind") if kind else None
    return _reply(await mesh_of(request).listing.deliveries(namespace, wanted, which, cursor, limit))


@router.post("/v1/deliveries/{delivery_id}/redeliver", tags=["deliveries"], summary="Send again", status_code=202)
async def redeliver_delivery(request: Request, delivery_id: str) -> Response:
    """A dead or delivered callback is due at once, with the same `webhook-id`."""
    mesh = mesh_of(request)
    row = await redeliver(mesh.store, delivery_id, _namespace(request))
    mesh.ticker.wake("")
    return _reply(row, 202)


@router.get("/v1/webhook-secret", tags=["deliveries"], summary="The secret that signs your callbacks")
async def webhook_secret(request: Request) -> Response:
    """Standard Webhooks, `whsec_...`; shown to its own namespace only (P84)."""
    mesh = mesh_of(request)
    return _reply({"secret": mesh.webhook_secrets[_namespace(request)]}, headers=_NO_STORE)


# The gateway itself -----------------------------------------------------------------------------------------------


@router.get("/healthz", tags=["gateway"], summary="The process answers")
async def healthz() -> Response:
    """Always 200 while the process serves."""
    return _reply({"status": "ok"})


@router.get("/readyz", tags=["gateway"], summary="Store writable and as declared")
async def readyz(request: Request) -> Response:
    """200 with what an acknowledgement is worth, else 503 with the reason."""
    ready, body = await mesh_of(request).ready()
    return _reply(body) if ready else _reply(body, 503, {"retry-after": "1"})


@router.get("/metrics", tags=["gateway"], summary="Prometheus")
async def metrics(request: Request) -> Response:
    """Counters and gauges of this process, and who waits and runs at endpoints in the store; no key is needed.

    With a key `mesh_endpoint_info` names the endpoints that its namespace may see, with an admin's or without any, all.
    """
    mesh = mesh_of(request)
    shown = await families(mesh, mesh.auth.known(request.scope["headers"]))
    return Response(mesh.metrics.render(shown), media_type="text/plain; version=0.0.4; charset=utf-8")
