"""`GET /v1/endpoints?watch=true`: the registry as server-sent events, with a cursor that a watcher comes back with.

Owns how many may watch and what an event looks like; what changed is registry/watch.py's to say.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from gateway.outcomes import encode_json
from mesh.clock import monotonic_s
from mesh.errors import TooMany
from registry.records import Filters, endpoint_record
from registry.watch import Log, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.app import Mesh
    from registry.catalog import Endpoint

WATCHERS_MAX: Final = 32
"""Of one namespace: nobody can take the places of others."""
WATCHERS_ALL_MAX: Final = 1_024
PING_S: Final = 15.0
RETRY_MS: Final = 1_000
CURSOR_CHARS_MAX: Final = 64


async def records(mesh: Mesh, endpoints: Sequence[Endpoint], viewer: str, *, instances: bool) -> list[dict[str, Any]]:
    """Endpoints as `viewer` reads them."""
    loads = await mesh.catalog.loads(endpoints)
    return [
        endpoint_record(one, mesh.router, load, viewer, instances=instances)
        for one, load in zip(endpoints, loads, strict=True)
    ]


def watching(request: Request, viewer: str, filters: Filters, cursor: str) -> Response:
    """The stream behind `Last-Event-ID`, else behind `cursor`, else of all that there is. Raises TooMany."""
    state, mesh = request.app.state, request.app.state.mesh
    if not hasattr(state, "registry_watchers"):
        state.registry_watchers = Counter[str]()
        state.registry_log = Log(mesh.catalog, mesh.router)
    watchers: Counter[str] = state.registry_watchers
    if watchers[viewer] >= WATCHERS_MAX or watchers.total() >= WATCHERS_ALL_MAX:
        detail = f"{watchers[viewer]} watchers of your namespace are connected to this gateway, the most there can be"
        if watchers[viewer] < WATCHERS_MAX:
            detail = f"{WATCHERS_ALL_MAX} watchers are connected to this gateway, the most there can be; ask another"
        raise TooMany(detail, code="too_many_watchers")
    after = (request.headers.get("last-event-id") or cursor)[:CURSOR_CHARS_MAX]
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    events = _events(mesh, Watch(state.registry_log, viewer, filters, after), viewer, watchers)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(mesh: Mesh, watch: Watch, viewer: str, watchers: Counter[str]) -> AsyncIterator[bytes]:
    """`endpoint` events with a record, `removed` with a name, `reset` before all that there is.

    The cursor comes behind all that belongs to it: who breaks off in between is told the whole step again.
    """
    watchers[viewer] += 1
    try:
        yield b"retry: %d\n\n" % RETRY_MS
        said_at_s = 0.0
        while not mesh.draining:
            step = watch.look()
            events = [(b"reset", b"{}")] if step.reset else []
            shown = await records(mesh, step.changed, viewer, instances=True)
            events += [(b"endpoint", encode_json(one)) for one in shown]
            events += [(b"removed", encode_json({"name": name})) for name in step.removed]
            for kind, data in events:
                yield b"event: %b\ndata: %b\n\n" % (kind, data)
            if events or not said_at_s:
                said_at_s = monotonic_s()
                yield b"id: %b\n\n" % step.cursor.encode()
            elif monotonic_s() - said_at_s >= PING_S:
                said_at_s = monotonic_s()
                yield b": ping\n\n"
            await watch.wait()
    finally:
        watchers[viewer] -= 1
        if not watchers[viewer]:
            del watchers[viewer]
