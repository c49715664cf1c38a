"""`/v1/schedules` over HTTP. HTTP in, thin: documents are checked by spec.py and kept by mesh/store/schedules.py."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec.structs import replace

from gateway.body_fields import body_invalid, read_fields
from gateway.declared import schema
from gateway.http import Caller, request_of
from gateway.listing import decode_cursor, encode_cursor
from gateway.outcomes import encode_json, known_fields
from gateway.query import check_query
from gateway.schedules.spec import (
    DOCUMENT_BYTES_MAX,
    check_name,
    from_document,
    order_of,
    read_schedule,
    record_fields,
)
from mesh.clock import now_ms, to_rfc3339
from mesh.edge.bodies import read_body
from mesh.errors import Malformed, TooMany
from mesh.ids import short_id
from mesh.wire import check_json, costly, parse_rfc3339

if TYPE_CHECKING:
    from gateway.app import Mesh
    from mesh.store.schedules import ScheduleRow

BACKFILL_MAX: Final = 1_000
LIMIT: Final = 50
LIMIT_MAX: Final = 200
NEVER: Final = "0"

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])
_etag: Final = re.compile(r'"v([1-9][0-9]{0,15})"').fullmatch
_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "Not there, or another namespace's"}}


class BackfillBody(msgspec.Struct, forbid_unknown_fields=True):
    """Times from `from` to `until`, both included, run now; `overlap`: one after the other, or all at once."""

    from_: str = msgspec.field(name="from")
    until: str
    overlap: Literal["queue", "allow"] = "queue"


_backfills: Final = msgspec.json.Decoder(BackfillBody)


def _mesh(request: Request) -> Mesh:
    return request.app.state.mesh


def _namespace(request: Request) -> str:
    return _mesh(request).auth.authenticate(request.scope["headers"]).namespace


def _reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(body), status, {"cache-control": "no-store", **(headers or {})}, "application/json")


async def _body(request: Request) -> bytes:
    routes = replace(_mesh(request).front.hot, body_bytes_max=DOCUMENT_BYTES_MAX, limit="the limit of a schedule")
    raw = request_of(request.scope, Caller(request.receive))
    await read_body(raw, request.receive, routes)
    if costly(raw.body):
        await _mesh(request).operations.check_json(raw.body, _namespace(request))
    else:
        check_json(raw.body)
    return raw.body


def _if_match(request: Request) -> str:
    """As the store wants it: "" none given, `*` any, `new` must not exist, else a version."""
    if request.headers.get("if-none-match") is not None:
        if request.headers["if-none-match"].strip() != "*":
            raise Malformed("If-None-Match takes `*`: create, do not replace", code="precondition_invalid")
        return "new"
    given = request.headers.get("if-match", "").strip()
    if given in ("", "*"):
        return given
    found = _etag(given)
    return found[1] if found else NEVER


async def _records(mesh: Mesh, rows: list[ScheduleRow], namespace: str) -> list[dict[str, Any]]:
    last = [row.facts.get("last", "") for row in rows]
    known = iter(await mesh.store.read_many([one for one in last if one]))
    states = [next(known) if one else None for one in last]
    records: list[dict[str, Any]] = []
    for row, run in zip(rows, states, strict=True):
        record = record_fields(row, namespace)
        if record["last_run"] is not None:
            record["last_run"]["state"] = run.state.word if run is not None else None
        records.append(record)
    return records


async def _one(mesh: Mesh, namespace: str, name: str, status: int = 200, headers: Any = None) -> Response:
    row = await mesh.clockwork.store.read(namespace, name)
    (record,) = await _records(mesh, [row], namespace)
    return _reply(record, status, {"etag": f'"v{row.version}"', **(headers or {})})


@router.put(
    "/{name}",
    summary="Create or replace a schedule",
    openapi_extra={"requestBody": {"required": True, "content": schema("ScheduleBody")}},
    responses={
        201: {"description": "New", "content": schema("Schedule")},
        200: {"description": "Replaced, or equal to what was there", "content": schema("Schedule")},
        412: {"description": "`If-Match` names another version, or `If-None-Match: *` and it is there"},
    },
)
async def put_schedule(request: Request, name: str) -> Response:
    """What would be refused as a start now is refused here. Its next time stays unless its times are changed."""
    mesh, namespace = _mesh(request), _namespace(request)
    check_name(name)
    schedule, document = read_schedule(await _body(request), namespace)
    await mesh.operations.check_order(order_of(schedule, namespace, "check", name, 0))
    known = (await mesh.clockwork.store.names(namespace)).get(name)
    schedule_id = known or short_id("s")
    next_ms = schedule.clock.after(now_ms())
    word, _, _ = await mesh.clockwork.store.put(
        namespace, name, schedule_id, document, if_match=_if_match(request), clock=schedule.clock_text,
        next_ms=next_ms, due_ms=schedule.due(schedule_id, next_ms),
    )  # fmt: skip
    mesh.clockwork.wake()
    if word == "created":
        return await _one(mesh, namespace, name, 201, {"location": f"/v1/schedules/{name}"})
    return await _one(mesh, namespace, name)


@router.get("", summary="List schedules", responses={200: {"description": "By name: `{items, next_cursor}`"}})
async def list_schedules(
    request: Request, cursor: str = "", limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT
) -> Response:
    """Those of the namespace. The cursor is the last name of the page before."""
    mesh, namespace = _mesh(request), _namespace(request)
    check_query(request)
    names = await mesh.clockwork.store.names(namespace)
    wanted = [names[name] for name in sorted(names) if name > cursor]
    rows = sorted(await mesh.clockwork.store.rows(wanted[:limit]), key=lambda row: row.name)
    more = rows[-1].name if len(wanted) > limit and rows else None
    return _reply({"items": await _records(mesh, rows, namespace), "next_cursor": more})


@router.get("/{name}", summary="One schedule", responses=_NOT_FOUND | {200: {"content": schema("Schedule")}})
async def get_schedule(request: Request, name: str) -> Response:
    """With its next times, the last run and what went wrong."""
    return await _one(_mesh(request), _namespace(request), name)


@router.delete(
    "/{name}", summary="Remove a schedule", status_code=204, responses=_NOT_FOUND | {412: {"description": "Stale"}}
)
async def delete_schedule(request: Request, name: str) -> Response:
    """Runs that were started go on; times that wait their turn are gone with it."""
    await _mesh(request).clockwork.store.delete(_namespace(request), name, _if_match(request))
    return Response(status_code=204)


@router.post("/{name}/pause", summary="Start nothing", responses=_NOT_FOUND | {200: {"content": schema("Schedule")}})
async def pause_schedule(request: Request, name: str) -> Response:
    """Runs that were started go on."""
    mesh, namespace = _mesh(request), _namespace(request)
    await mesh.clockwork.store.pause(namespace, name, paused=True)
    return await _one(mesh, namespace, name)


@router.post("/{name}/resume", summary="Go on", responses=_NOT_FOUND | {200: {"content": schema("Schedule")}})
async def resume_schedule(request: Request, name: str) -> Response:
    """From the next time on; what came while it was paused is not caught up with (backfill does that)."""
    mesh, namespace = _mesh(request), _namespace(request)
    row = await mesh.clockwork.store.read(namespace, name)
    schedule = from_document(row.document)
    next_ms = schedule.clock.after(now_ms())
    due_ms = schedule.due(row.id, next_ms)
    await mesh.clockwork.store.pause(namespace, name, paused=False, next_ms=next_ms, due_ms=due_ms)
    mesh.clockwork.wake()
    return await _one(mesh, namespace, name)


@router.post(
    "/{name}/backfill",
    summary="Run the times of a span now",
    status_code=202,
    openapi_extra={"requestBody": {"required": True, "content": schema("BackfillBody")}},
    responses=_NOT_FOUND | {202: {"description": "`{times, queued}`"}, 429: {"description": "Too many wait already"}},
)
async def backfill_schedule(request: Request, name: str) -> Response:
    """A time that ran already is not run again. While the schedule is paused they wait."""
    mesh, namespace = _mesh(request), _namespace(request)
    body = read_fields(await _body(request), _backfills, "a backfill")
    from_ms, until_ms = _time(body.from_, "from"), _time(body.until, "until")
    if from_ms < 0:
        raise body_invalid("/from", "from is not before 1970-01-01T00:00:00Z")
    if until_ms < from_ms:
        raise body_invalid("/until", "until is not before from")
    if until_ms > now_ms():
        raise body_invalid("/until", "until is not in the future; the schedule itself will see to that")
    row = await mesh.clockwork.store.read(namespace, name)
    times = list(islice(from_document(row.document).clock.between(from_ms, until_ms), BACKFILL_MAX + 1))
    if len(times) > BACKFILL_MAX:
        detail = f"there are more than {BACKFILL_MAX} times in that span; ask for a shorter one"
        raise TooMany(detail, code="backfill_too_long")
    queued = await mesh.clockwork.store.backfill(namespace, name, body.overlap, times)
    mesh.clockwork.wake()
    return _reply({"times": [to_rfc3339(at) for at in times], "queued": queued}, 202)


def _time(text: str, name: str) -> int:
    try:
        return parse_rfc3339(text)
    except Malformed:
        raise body_invalid(f"/{name}", f"{name} is an RFC 3339 time such as 2026-11-22T10:00:00Z") from None


@router.get(
    "/{name}/runs",
    summary="Its runs, newest scheduled time first",
    responses=_NOT_FOUND | {200: {"description": "`{items: [{scheduled_at, operation}], next_cursor}`"}},
)
async def schedule_runs(
    request: Request, name: str, cursor: str = "", limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT
) -> Response:
    """`operation` is the record without its result; runs past their retention are left out."""
    mesh, namespace = _mesh(request), _namespace(request)
    check_query(request)
    row = await mesh.clockwork.store.read(namespace, name)
    found = await mesh.clockwork.store.runs(row.id, decode_cursor(cursor) if cursor else None, limit + 1)
    records = await mesh.store.read_many([one for one, _ in found[:limit]])
    items = [
        {"scheduled_at": to_rfc3339(at), "operation": known_fields(record._replace(outcome=None))}
        for (_, at), record in zip(found[:limit], records, strict=True)
        if record is not None
    ]
    last = found[limit - 1] if len(found) > limit else None
    return _reply({"items": items, "next_cursor": encode_cursor(last[1], last[0]) if last else None})
