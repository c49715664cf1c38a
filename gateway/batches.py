"""`POST /v1/operations/batch`: many starts in one request, a line each, a line of outcome for each. HTTP in, thin.

The body is read as it comes and never held whole. Lines go to the store in groups, each one step and one fsync; a few
groups are under way at a time. Outcomes are answered in the order of the lines, the first ones while others are read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from msgspec.structs import replace
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.batch_lines import BATCH_BYTES_MAX, LINES_MAX, Line, Splitter, outcome_line, read_line
from gateway.declared import KEY
from gateway.operations import BATCHES_MAX, EACH_BATCHES_MAX
from gateway.start_body import as_v1
from mesh.edge.exchange import check_head
from mesh.errors import MeshError, TooMany, Unprocessable
from mesh.store.store import START_MANY_MAX
from mesh.wire import caller_headers, check_json, costly

if TYPE_CHECKING:
    from gateway.app import Mesh
    from gateway.orders import Order
    from mesh.edge import Headers
    from mesh.wire import CallerHeaders

GROUP_BYTES_MAX: Final = 1 << 20
GROUPS_MAX: Final = 4
"""Of one batch under way."""
MEDIA: Final = "application/x-ndjson"

router = APIRouter()
_log = logging.getLogger(__name__)


class Batch:
    """One batch on its way through this gateway."""

    def __init__(self, mesh: Mesh, namespace: str, headers: CallerHeaders, line_bytes_max: int) -> None:
        self._mesh = mesh
        self._seats = mesh.operations.batches
        self._namespace = namespace
        self._headers = headers
        self._lines = Splitter(line_bytes_max)
        self._room = asyncio.Semaphore(GROUPS_MAX)
        self._groups: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        """In the order of their lines; at most LINES_MAX, since each has one."""
        self._running: set[asyncio.Task[bytes]] = set()

    async def outcomes(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Lines of outcome, a group at a time. Reading goes on whether or not somebody takes them. Raises TooMany."""
        if not self._seats.take(self._namespace):
            detail = f"this gateway reads {BATCHES_MAX} batches at a time, {EACH_BATCHES_MAX} of one namespace"
            raise TooMany(f"{detail}; send it again, or to another gateway", code="too_many_batches")
        reader = asyncio.create_task(self._read(body), name="mesh-batch")
        try:
            while (group := await self._groups.get()) is not None:
                yield await group
            await reader
        finally:
            # Groups under way end by themselves: what the store was asked cannot be taken back.
            reader.cancel()
            self._seats.leave(self._namespace)

    async def _read(self, body: AsyncIterator[bytes]) -> None:
        waiting: list[Line] = []
        size = 0
        try:
            async for chunk in body:
                for line in self._lines.feed(chunk):
                    waiting.append(line)
                    size += len(line.text)
                    if len(waiting) == START_MANY_MAX or size > GROUP_BYTES_MAX:
                        await self._send(waiting)
                        waiting, size = [], 0
                if self._lines.over:
                    break
                if waiting and not self._running:
                    # Whoever sends a line now and then waits for no others.
                    await self._send(waiting)
                    waiting, size = [], 0
            waiting.extend(self._lines.end())
            if waiting:
                await self._send(waiting)
        except ClientDisconnect:
            pass  # what came whole is under way, the rest never was a line
        finally:
            self._groups.put_nowait(None)

    async def _send(self, lines: list[Line]) -> None:
        """Set a group going as soon as there is room."""
        await self._room.acquire()
        task = asyncio.create_task(self._group(lines))
        self._running.add(task)
        task.add_done_callback(self._ended)
        self._groups.put_nowait(task)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        self._room.release()

    async def _group(self, lines: list[Line]) -> bytes:
        orders: list[Order | None] = []
        outcomes: dict[int, Any] = {}
        for line in lines:
            try:
                if costly(line.text):
                    await self._mesh.operations.check_json(line.text, self._namespace)
                elif line.fault is None:
                    check_json(line.text)
                orders.append(read_line(line, self._namespace, self._headers))
            except MeshError as refusal:
                orders.append(None)
                outcomes[line.number] = refusal
        read = [(line.number, order) for line, order in zip(lines, orders, strict=True) if order is not None]
        try:
            begun: list[Any] = await self._mesh.operations.start_many([order for _, order in read])
        except Exception as fault:  # noqa: BLE001 - a line each, whatever it was
            if not isinstance(fault, MeshError):
                _log.exception("a group of a batch failed")
            begun = [fault] * len(read)
        for (number, _), one in zip(read, begun, strict=True):
            outcomes[number] = as_v1(one) if isinstance(one, MeshError) else one
        return b"".join(
            [outcome_line(line.number, order, outcomes[line.number]) for line, order in zip(lines, orders, strict=True)]
        )


@router.post(
    "/v1/operations/batch",
    tags=["operations"],
    summary="Start many operations",
    openapi_extra={
        "parameters": [KEY],
        "requestBody": {
            "required": True,
            "content": {
                MEDIA: {
                    "schema": {
                        "type": "string",
                        "description": f"A StartBody a line, with `idempotency_key`; at most {LINES_MAX} lines and"
                        f" {BATCH_BYTES_MAX} bytes",
                    }
                }
            },
        },
    },
    responses={
        200: {
            "description": "An outcome for each line, in order: `{line, status: 202, id, state, idempotency_key?,"
            " replayed?, starts_at?, blocked?}` or `{line, status, problem, idempotency_key?}`",
            "content": {MEDIA: {"schema": {"type": "string"}}},
        },
        413: {"description": "Larger than a batch may be, by its `Content-Length`: nothing was started"},
        429: {"description": "`too_many_batches`: this gateway reads as many as it can, of all or of one namespace"},
    },
)
async def start_batch(request: Request) -> Response:
    """Each line is a start of its own, accepted or refused by itself; none is waited for."""
    mesh: Mesh = request.app.state.mesh
    raw: Headers = request.scope["headers"]
    namespace = mesh.auth.authenticate(raw).namespace
    limits = mesh.front.hot
    check_head(
        raw, dict(reversed(raw)), replace(limits, body_bytes_max=BATCH_BYTES_MAX, limit="the limit of a batch"),
        measure=True, large=False,
    )  # fmt: skip
    batch = Batch(mesh, namespace, caller_headers(raw), limits.body_bytes_max)
    outcomes = batch.outcomes(request.stream())
    # Before the head of the answer leaves, or a caller that waits for `100 Continue` takes it for the end.
    first = await anext(outcomes, b"")
    if not first:
        raise Unprocessable("the batch has no line; send one JSON object a line", code="batch_empty")
    return _Outcomes(_from(first, outcomes), media_type=MEDIA, headers={"cache-control": "no-store"})


async def _from(first: bytes, outcomes: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for group in outcomes:
        yield group


class _Outcomes(StreamingResponse):
    """Answers while the body is still read: nobody but its reader may take what is received, not even to see it end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)
