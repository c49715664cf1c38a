"""The caller client for scripts: the verbs of aio.py, blocking.

Owns blocking I/O only; the words are flow.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, Unpack, cast, overload

import httpx
from nexusrpc import Operation

from mesh.blob import PIECE_BYTES, Blob
from mesh.client import batch as batches
from mesh.client import flow as flows
from mesh.client.asking import REPEATED, Answer, Flow, Pause, T, Unreached
from mesh.client.errors import GatewayUnreachable, refusal
from mesh.client.events import Chunk, Event, EventReader, chunk_of
from mesh.client.order import Called, Order, Page, Record, codec_of, handle_repr
from mesh.client.schedules import ScheduleRecord, Schedules
from mesh.client.shared import LIMITS, Base, I, O, StartOptions
from mesh.clock import monotonic_s, pause
from mesh.errors import MeshError


class SyncClient(Base):
    """`mesh.Client` without asyncio, for scripts; may be shared by threads.

    Arguments, options and errors as there.
    """

    def __init__(
        self,
        gateway: str | Sequence[str] | None = None,
        key: str | None = None,
        *,
        retry_for_s: float = flows.RETRY_FOR_S,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(gateway, key, retry_for_s)
        self.schedules: Schedules[ScheduleRecord, None] = Schedules(self._run, retry_for_s)
        """Operations that start by the clock: put, get, list, remove, pause, resume, backfill, runs."""
        self._own_http = http is None
        self._http = http or httpx.Client(limits=LIMITS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own_http:
            self._http.close()

    @overload
    def start(
        self,
        endpoint: str,
        operation: Operation[I, O],
        input: I = ...,
        /,
        *,
        wait_s: float = 0,
        **options: Unpack[StartOptions],
    ) -> SyncOperationHandle[O]: ...
    @overload
    def start(
        self,
        endpoint: str,
        service: str | type,
        operation: str | Operation[Any, Any],
        input: Any = ...,
        /,
        *,
        wait_s: float = 0,
        **options: Unpack[StartOptions],
    ) -> SyncOperationHandle[Any]: ...
    def start(
        self, endpoint: str, /, *what: Any, wait_s: float = 0, **options: Unpack[StartOptions]
    ) -> SyncOperationHandle[Any]:
        """Start an operation; it is durable when this returns. `wait_s`: wait that long for its end, at most.

        `what` is `Contract.operation, input` or `service, operation, input`; input None is Nexus null.
        """
        order = self.order(endpoint, what, options)
        placed = self._run(flows.start(order, wait_s, self.retry_for_s))
        return SyncOperationHandle(self, placed.id, placed.record, order.called, replayed=placed.replayed)

    @overload
    def call(
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
    def call(
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
    def call(
        self, endpoint: str, /, *what: Any, timeout_s: float | None = None, **options: Unpack[StartOptions]
    ) -> Any:
        """Start an operation and wait for its result.

        Raises OperationFailed, OperationCanceled, OperationTimedOut, and StillRunning when `timeout_s` is over first;
        without one it waits as long as it takes. Why one waits is a warning of the logger `mesh.client`, after 5 s.
        """
        return self._run(flows.call(self.order(endpoint, what, options), timeout_s, self.retry_for_s))

    def prepare(self, endpoint: str, /, *what: Any, **options: Unpack[StartOptions]) -> Order:
        """A start for `start_many`, named as in `start`; nothing is asked."""
        return self.order(endpoint, what, options)

    def start_many(self, orders: Iterable[Order]) -> Sequence[SyncOperationHandle[Any] | MeshError]:
        """Start any number of operations in few requests; each is durable, or refused by itself.

        For each of `orders` (from `prepare`), in order: its handle, or the error that `start` would have raised. Faults
        and refusals worth repeating are repeated, with the same keys. Headers and links are those of all of them.
        """
        wanted = list(orders)
        found = self._run(batches.start_many(wanted, self.retry_for_s))
        return [
            one
            if isinstance(one, MeshError)
            else SyncOperationHandle(self, one.id, one.record, order.called, replayed=one.replayed)
            for order, one in zip(wanted, found, strict=True)
        ]

    def handle(self, operation_id: str, output: Any = Any) -> SyncOperationHandle[Any]:
        """An operation started elsewhere, its result of type `output`; nothing is asked: `record` has its id only."""
        called = Called("", "", codec_of(Any), codec_of(output))
        return SyncOperationHandle(self, operation_id, cast("Record", {"id": operation_id}), called, replayed=False)

    def get(self, operation_id: str) -> Record:
        """The record of an operation."""
        return self._run(flows.get(operation_id, self.retry_for_s))

    def result(self, operation_id: str, *, output: Any = Any, timeout_s: float | None = None) -> Any:
        """Wait for the result. Raises as `call`."""
        return self._run(flows.result(operation_id, codec_of(output), timeout_s, self.retry_for_s))

    def cancel(self, operation_id: str) -> Record:
        """Ask for the end of an operation; it may still end in any state. Repeats and ended ones are fine."""
        return self._run(flows.cancel(operation_id, self.retry_for_s))

    def list(self, *, labels: Mapping[str, str] | None = None, **filters: str | int | None) -> Page:
        """A page of operations, newest first.

        Filters: state, endpoint, service, operation, since, until (RFC 3339), cursor, limit.
        """
        return self._run(flows.listing(filters, labels, self.retry_for_s))

    def watch(self, operation_id: str, *, after: int = 0) -> Iterator[Event]:
        """The history from `after` on, as it happens, each event once, until the operation is over and settled.

        A broken stream is taken up again where it ended; GatewayUnreachable after `retry_for_s` without success.
        """
        return self._follow(flows.events_path(operation_id), after)

    def stream(self, operation_id: str, *, after: int = 0) -> Iterator[Chunk]:
        """What the handler emits (`ctx.emit`), from chunk `after` on, as it comes, until the operation is over."""
        return map(chunk_of, self._follow(flows.stream_path(operation_id), after))

    def _follow(self, path: str, after: int) -> Iterator[Event]:
        reader, give_up_s = EventReader(after), monotonic_s() + self.retry_for_s
        while True:
            reader.begin()
            trouble, at = GatewayUnreachable("the event stream broke off"), self.at
            try:
                with self._http.stream(**self.request(self.watching(path, reader), at)) as reply:
                    if reply.status_code == 200:  # noqa: PLR2004
                        for chunk in reply.iter_bytes():
                            yield from reader.feed(chunk)
                            give_up_s = monotonic_s() + self.retry_for_s
                            if reader.ended:
                                return
                    else:
                        trouble = refusal(reply.status_code, reply.read(), 0)
                        if reply.status_code not in REPEATED:
                            raise trouble
                        self.leave(at)
            except httpx.TransportError as fault:
                trouble = GatewayUnreachable(self.fault(fault, at).why)
            if monotonic_s() > give_up_s:
                raise trouble
            pause(reader.retry_ms / 1000)

    def _run(self, flow: Flow[T]) -> T:
        answer: Answer | Unreached | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = None
            if isinstance(step, Pause):
                pause(step.seconds)
                continue
            at = self.at
            try:
                if step.keep:
                    answer = self._keep(self.request(step, at), at)
                else:
                    answer = self.answer(self._http.request(**self.request(step, at)), at)
            except httpx.TransportError as fault:
                answer = self.fault(fault, at)

    def _keep(self, request: dict[str, Any], at: int) -> Answer | Unreached:
        """A 200 to a temporary file, any other reply as ever."""
        with self._http.stream(**request) as reply:
            if reply.status_code != 200:  # noqa: PLR2004
                reply.read()
                return self.answer(reply, at)
            blob, found = Blob.temporary(content_type=reply.headers.get("content-type")), hashlib.sha256()
            with blob.writing() as file:
                for piece in reply.iter_bytes(PIECE_BYTES):
                    found.update(piece)
                    file.write(piece)
            return self.kept(reply, blob, found.hexdigest())


class SyncOperationHandle(Generic[O]):
    """A started operation. `id` is its name for ever, `record` what was known of it at the start."""

    def __init__(
        self, client: SyncClient, operation_id: str, record: Record, called: Called, *, replayed: bool
    ) -> None:
        self._client = client
        self._called = called
        self.id = operation_id
        self.record = record
        self.replayed = replayed
        """The key was used before: this is the operation of that time."""

    def __repr__(self) -> str:
        return handle_repr(self, self.id, self.record)

    def result(self, *, timeout_s: float | None = None) -> O:
        """Wait for the result. Raises as `SyncClient.call`."""
        return self._client.result(self.id, output=self._called.output.type, timeout_s=timeout_s)

    def get(self) -> Record:
        """The record now."""
        return self._client.get(self.id)

    def cancel(self) -> Record:
        """Ask for its end."""
        return self._client.cancel(self.id)

    def watch(self, *, after: int = 0) -> Iterator[Event]:
        """Its history, as it happens."""
        return self._client.watch(self.id, after=after)

    def stream(self, *, after: int = 0) -> Iterator[Chunk]:
        """What its handler emits, as it comes."""
        return self._client.stream(self.id, after=after)
