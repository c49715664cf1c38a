"""The caller client for asyncio. Owns the connections; what is said on them is flow.py. Must not know the store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, Generic, Self, Unpack, cast, overload

import httpx
from nexusrpc import Operation

from mesh.blob import PIECE_BYTES, Blob
from mesh.client import batch as batches
from mesh.client import flow as flows
from mesh.client.asking import REPEATED, Answer, Flow, Pause, T, Unreached
from mesh.client.errors import (
    GatewayUnreachable,
    refusal,
)
from mesh.client.events import Chunk, Event, EventReader, chunk_of
from mesh.client.order import Called, Order, Page, Record, codec_of, handle_repr
from mesh.client.schedules import ScheduleRecord, Schedules
from mesh.client.shared import LIMITS, Base, I, O, StartOptions
from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError


class Client(Base):
    """A caller's connection to a mesh, for asyncio; one per event loop, used by any number of tasks.

    gateway       base URL, or several of one mesh (a sequence, or commas between them): the next one is asked when one
                  does not answer, or is not ready; default: environment MESH_URL, else http://127.0.0.1:7411
    key           API key; default: environment MESH_KEY; none in development
    retry_for_s   how long faults, 429, 503 and what else is marked retryable are repeated, always with the same
                  idempotency key
    http          an httpx client of your own (proxies, TLS); it is not closed here

    Raised by every method: refusals of mesh/errors.py (Malformed, NotFound, Conflict, Unprocessable, TooMany, ...) and,
    when repeats did not help, Unavailable or GatewayUnreachable.
    """

    def __init__(
        self,
        gateway: str | Sequence[str] | None = None,
        key: str | None = None,
        *,
        retry_for_s: float = flows.RETRY_FOR_S,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(gateway, key, retry_for_s)
        self.schedules: Schedules[Awaitable[ScheduleRecord], Awaitable[None]] = Schedules(self._run, retry_for_s)
        """Operations that start by the clock: put, get, list, remove, pause, resume, backfill, runs."""
        self._own_http = http is None
        self._http = http or httpx.AsyncClient(limits=LIMITS, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._own_http:
            await self._http.aclose()

    @overload
    async def start(
        self,
        endpoint: str,
        operation: Operation[I, O],
        input: I = ...,
        /,
        *,
        wait_s: float = 0,
        **options: Unpack[StartOptions],
    ) -> OperationHandle[O]: ...
    @overload
    async def start(
        self,
        endpoint: str,
        service: str | type,
        operation: str | Operation[Any, Any],
        input: Any = ...,
        /,
        *,
        wait_s: float = 0,
        **options: Unpack[StartOptions],
    ) -> OperationHandle[Any]: ...
    async def start(
        self, endpoint: str, /, *what: Any, wait_s: float = 0, **options: Unpack[StartOptions]
    ) -> OperationHandle[Any]:
        """Start an operation; it is durable when this returns. `wait_s`: wait that long for its end, at most.

        `what` is `Contract.operation, input` or `service, operation, input`; input None is Nexus null. A `mesh.Blob` or
        the path of a file is streamed; with `output=mesh.Blob` so is the result, to a temporary file. With nexus-rpc
        before 1.5 an operation does not know its service: `Contract, Contract.operation, input`.
        """
        order = await self._order(endpoint, what, options)
        placed = await self._run(flows.start(order, wait_s, self.retry_for_s))
        return OperationHandle(self, placed.id, placed.record, order.called, replayed=placed.replayed)

    @overload
    async def call(
        self,
        endpoint: str,
        operation: Operation[I, O],
        input: I = ...,
        /,
        *,
        timeout_s: float | None = None,
        **options: Unpack[StartOptions],
    ) -> O: ...
    @overload
    async def call(
        self,
        endpoint: str,
        service: str | type,
        operation: str | Operation[Any, Any],
        input: Any = ...,
        /,
        *,
        timeout_s: float | None = None,
        **options: Unpack[StartOptions],
    ) -> Any: ...
    async def call(
        self, endpoint: str, /, *what: Any, timeout_s: float | None = None, **options: Unpack[StartOptions]
    ) -> Any:
        """Start an operation and wait for its result.

        Raises OperationFailed, OperationCanceled, OperationTimedOut, and StillRunning when `timeout_s` is over first;
        without one it waits as long as it takes. Why one waits is a warning of the logger `mesh.client`, after 5 s.
        """
        order = await self._order(endpoint, what, options)
        return await self._run(flows.call(order, timeout_s, self.retry_for_s))

    async def _order(self, endpoint: str, what: tuple[Any, ...], options: StartOptions) -> Order:
        order = self.order(endpoint, what, options)
        if isinstance(order.value, Blob):
            await order.value.digest()  # it will be asked for where nothing can be awaited
        return order

    def prepare(self, endpoint: str, /, *what: Any, **options: Unpack[StartOptions]) -> Order:
        """A start for `start_many`, named as in `start`; nothing is asked."""
        return self.order(endpoint, what, options)

    async def start_many(self, orders: Iterable[Order]) -> Sequence[OperationHandle[Any] | MeshError]:
        """Start any number of operations in few requests; each is durable, or refused by itself.

        For each of `orders` (from `prepare`), in order: its handle, or the error that `start` would have raised. Faults
        and refusals worth repeating are repeated, with the same keys. Headers and links are those of all of them.
        """
        wanted = list(orders)
        found = await self._run(batches.start_many(wanted, self.retry_for_s))
        return [
            one
            if isinstance(one, MeshError)
            else OperationHandle(self, one.id, one.record, order.called, replayed=one.replayed)
            for order, one in zip(wanted, found, strict=True)
        ]

    def handle(self, operation_id: str, output: Any = Any) -> OperationHandle[Any]:
        """An operation started elsewhere, its result of type `output`; nothing is asked: `record` has its id only."""
        called = Called("", "", codec_of(Any), codec_of(output))
        return OperationHandle(self, operation_id, cast("Record", {"id": operation_id}), called, replayed=False)

    async def get(self, operation_id: str) -> Record:
        """The record of an operation."""
        return await self._run(flows.get(operation_id, self.retry_for_s))

    async def result(self, operation_id: str, *, output: Any = Any, timeout_s: float | None = None) -> Any:
        """Wait for the result. Raises as `call`."""
        return await self._run(flows.result(operation_id, codec_of(output), timeout_s, self.retry_for_s))

    async def cancel(self, operation_id: str) -> Record:
        """Ask for the end of an operation; it may still end in any state. Repeats and ended ones are fine."""
        return await self._run(flows.cancel(operation_id, self.retry_for_s))

    async def list(self, *, labels: Mapping[str, str] | None = None, **filters: str | int | None) -> Page:
        """A page of operations, newest first.

        Filters: state, endpoint, service, operation, since, until (RFC 3339), cursor, limit.
        """
        return await self._run(flows.listing(filters, labels, self.retry_for_s))

    async def watch(self, operation_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """The history from `after` on, as it happens, each event once, until the operation is over and settled.

        A broken stream is taken up again where it ended; GatewayUnreachable after `retry_for_s` without success.
        """
        async for event in self._follow(flows.events_path(operation_id), after):
            yield event

    async def stream(self, operation_id: str, *, after: int = 0) -> AsyncIterator[Chunk]:
        """What the handler emits (`ctx.emit`), from chunk `after` on, as it comes, until the operation is over."""
        async for event in self._follow(flows.stream_path(operation_id), after):
            yield chunk_of(event)

    async def _follow(self, path: str, after: int) -> AsyncIterator[Event]:
        reader, give_up_s = EventReader(after), monotonic_s() + self.retry_for_s
        while True:
            reader.begin()
            trouble, at = GatewayUnreachable("the event stream broke off"), self.at
            try:
                async with self._http.stream(**self.request(self.watching(path, reader), at)) as reply:
                    if reply.status_code == 200:  # noqa: PLR2004
                        async for chunk in reply.aiter_bytes():
                            for event in reader.feed(chunk):
                                yield event
                            give_up_s = monotonic_s() + self.retry_for_s
                            if reader.ended:
                                return
                    else:
                        trouble = refusal(reply.status_code, await reply.aread(), 0)
                        if reply.status_code not in REPEATED:
                            raise trouble
                        self.leave(at)
            except httpx.TransportError as fault:
                trouble = GatewayUnreachable(self.fault(fault, at).why)
            if monotonic_s() > give_up_s:
                raise trouble
            await sleep(reader.retry_ms / 1000)

    async def _run(self, flow: Flow[T]) -> T:
        answer: Answer | Unreached | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = None
            if isinstance(step, Pause):
                await sleep(step.seconds)
                continue
            at = self.at
            try:
                if step.keep:
                    answer = await self._keep(self.request(step, at), at)
                else:
                    answer = self.answer(await self._http.request(**self.request(step, at)), at)
            except httpx.TransportError as fault:
                answer = self.fault(fault, at)

    def streamed(self, blob: Blob) -> Any:
        return blob.chunks()

    async def _keep(self, request: dict[str, Any], at: int) -> Answer | Unreached:
        """A 200 to a temporary file, any other reply as ever."""
        async with self._http.stream(**request) as reply:
            if reply.status_code != 200:  # noqa: PLR2004
                await reply.aread()
                return self.answer(reply, at)
            blob, found = Blob.temporary(content_type=reply.headers.get("content-type")), hashlib.sha256()
            loop = asyncio.get_running_loop()
            with await loop.run_in_executor(None, blob.writing) as file:
                async for piece in reply.aiter_bytes(PIECE_BYTES):
                    found.update(piece)
                    await loop.run_in_executor(None, file.write, piece)
            return self.kept(reply, blob, found.hexdigest())


class OperationHandle(Generic[O]):
    """A started operation. `id` is its name for ever, `record` what was known of it at the start."""

    def __init__(self, client: Client, operation_id: str, record: Record, called: Called, *, replayed: bool) -> None:
        self._client = client
        self._called = called
        self.id = operation_id
        self.record = record
        self.replayed = replayed
        """The key was used before: this is the operation of that time."""

    def __repr__(self) -> str:
        return handle_repr(self, self.id, self.record)

    async def result(self, *, timeout_s: float | None = None) -> O:
        """Wait for the result. Raises as `Client.call`."""
        return await self._client.result(self.id, output=self._called.output.type, timeout_s=timeout_s)

    async def get(self) -> Record:
        """The record now."""
        return await self._client.get(self.id)

    async def cancel(self) -> Record:
        """Ask for its end."""
        return await self._client.cancel(self.id)

    def watch(self, *, after: int = 0) -> AsyncIterator[Event]:
        """Its history, as it happens."""
        return self._client.watch(self.id, after=after)

    def stream(self, *, after: int = 0) -> AsyncIterator[Chunk]:
        """What its handler emits, as it comes."""
        return self._client.stream(self.id, after=after)
