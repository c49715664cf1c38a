"""What an operation says as it goes on: its history and its stream, as JSON or server-sent events. HTTP in, thin."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from gateway.outcomes import encode_json
from gateway.query import check_query
from gateway.waiters import wait_for
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, MeshError
from mesh.machine import Delivery, State

if TYPE_CHECKING:
    from gateway.app import Mesh
    from mesh.store.layout import Head

PING_S: Final = 15.0
LOOK_S: Final = 2.0
RETRY_MS: Final = 1_000
PAGE: Final = 1_000
PAGE_MAX: Final = 5_000

router = APIRouter()
_sequence: Final = re.compile(r"[0-9]{1,9}").fullmatch


class Part(NamedTuple):
    """Some items with their numbers, how many there are in all, and the head as it was no later than they were."""

    items: list[tuple[int, Any]]
    total: int
    head: Head


Read = Callable[[int, int], Awaitable[Part]]
"""(after, limit) -> what follows."""


async def _answer(request: Request, cursor: str, limit: int, read: Read, operation_id: str, name: str) -> Response:
    streamed = "text/event-stream" in request.headers.get("accept", "")
    given = (request.headers.get("last-event-id") or cursor) if streamed else cursor
    if given and not _sequence(given):
        raise Malformed("the cursor (or Last-Event-ID) is a sequence number", code="cursor_invalid")
    after = int(given or 0)
    part = await read(after, 1 if streamed else limit)
    if streamed:
        return StreamingResponse(
            _stream(request.app.state.mesh, operation_id, after, read, name),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
    last = part.items[-1][0] if part.items else after
    body = {"items": [item for _, item in part.items], "next_cursor": str(last) if last < part.total else None}
    return Response(encode_json(body), media_type="application/json")


async def _stream(mesh: Mesh, operation_id: str, after: int, read: Read, name: str) -> AsyncIterator[bytes]:
    """SSE: `id:` is the number; after the last item an `end` without id (P68). `name`: of all events, or ""."""
    yield b"retry: %d\n\n" % RETRY_MS
    quiet_s = 0.0
    with mesh.waiters.watching(operation_id) as moved:
        while True:
            try:
                part = await read(after, PAGE)
            except MeshError:
                return
            for number, item in part.items:
                event = name or item["type"]
                yield b"id: %d\nevent: %b\ndata: %b\n\n" % (number, event.encode(), encode_json(item))
                after, quiet_s = number, 0.0
            if part.items and after < part.total:
                continue
            head = part.head
            if State(head.state).terminal and not _owes(head.callback, head.cancel):
                end = encode_json({"state": State(head.state).word, f"{name}s" if name else "events": part.total})
                yield b"event: end\ndata: %b\n\n" % end
                return
            if mesh.draining:
                return
            await wait_for(moved, PING_S)
            quiet_s += LOOK_S
            if quiet_s >= PING_S:
                quiet_s = 0.0
                yield b": ping\n\n"


def _owes(*states: int) -> bool:
    return any(state in (Delivery.DUE, Delivery.LEASED) for state in states)


@router.get("/v1/operations/{operation_id}/events", tags=["operations"], summary="History, as JSON or SSE")
async def operation_events(
    request: Request, operation_id: str, cursor: str = "", limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE
) -> Response:
    """What happened to it and what its handler did; with `Accept: text/event-stream` from `Last-Event-ID` on."""
    mesh: Mesh = request.app.state.mesh
    namespace = mesh.auth.authenticate(request.scope["headers"]).namespace
    check_query(request)

    async def read(after: int, count: int) -> Part:
        history = await mesh.operations.history(operation_id, namespace, after, count)
        return Part(history.events, history.total, history.record.head)

    return await _answer(request, cursor, limit, read, operation_id, "")


@router.get(
    "/v1/operations/{operation_id}/stream", tags=["operations"], summary="Chunks its handler emits, JSON or SSE"
)
async def operation_stream(
    request: Request, operation_id: str, cursor: str = "", limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE
) -> Response:
    """Chunks as they were emitted, each with its number; with `Accept: text/event-stream` from `Last-Event-ID` on."""
    mesh: Mesh = request.app.state.mesh
    namespace = mesh.auth.authenticate(request.scope["headers"]).namespace
    check_query(request)

    async def read(after: int, count: int) -> Part:
        known, lines, total = await mesh.operations.stream(operation_id, namespace, after, count)
        items = [
            (
                number,
                {
                    "seq": number,
                    "at": to_rfc3339(known.head.created_at + line.after_ms),
                    "attempt": line.attempt,
                    "chunk": msgspec.Raw(line.body),
                },
            )
            for number, line in enumerate(lines, start=after + 1)
        ]
        return Part(items, total, known.head)

    return await _answer(request, cursor, limit, read, operation_id, "chunk")
