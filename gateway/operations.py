"""The single door: every route, adapter, console view and CLI verb about operations goes through here.

Owns what accepting, waiting, reading and ending an operation means; knows neither HTTP routes nor keys of the store.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gateway.callbacks import NEXUS
from gateway.waiters import wait_for
from mesh.clock import monotonic_s, now_ms
from mesh.errors import Conflict, Gone, NotFound, Unauthenticated, Unavailable
from mesh.ids import is_operation_id, operation_id
from mesh.machine import Delivery, Event, Kind, State
from mesh.store.layout import Entry, Head, Outcome, Request
from mesh.store.store import NoEndpoint, NoSession, Store
from mesh.store.verbs import Accepted, Completion, KeyReused, Record, Replayed, Start, Task, Work
from mesh.wire import failure_json
from registry.catalog import Endpoint
from registry.routing import Outcome as Routed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.courier import Courier, Session
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.waiters import Ending, FirstRequest, Waiters
    from mesh.tokens import CompletionTokens
    from mesh.wire import Completion as WireCompletion
    from registry.catalog import Catalog
    from registry.routing import Router

LEASE_GRACE_MS: Final = 5_000
"""A start request's lease outlives its timeout by this much, so that the sender books its own timeout first."""
QUICK_S: Final = 0.1
"""Most answers come within this; a longer wait is worth a subscription and an eye on the caller's connection."""
BOOKING_S: Final = 6.0
"""How long an answer may wait for the store call that already claimed it; above the link's own deadline."""


class Order(NamedTuple):
    """What a caller asks for, checked by its route. Timeouts in ms, 0 = the endpoint's policy decides."""

    namespace: str
    endpoint: str
    service: str
    operation: str
    content_type: str | None
    body: bytes
    key: str
    headers: list[tuple[bytes, bytes]]
    input_at: str = ""
    """JSON Pointer of the input in the caller's request, for errors."""
    callback_url: str = ""
    callback_format: str = NEXUS
    callback_headers: list[tuple[bytes, bytes]] = []  # noqa: RUF012 - read only
    close_ms: int = 0
    start_ms: int = 0
    run_ms: int = 0
    request_ms: int = 0
    labels: dict[str, str] = {}  # noqa: RUF012 - read only
    links: list[str] = []  # noqa: RUF012 - read only


class Placed(NamedTuple):
    """An accepted (or replayed) operation. `first` is open when this request may still carry the outcome."""

    id: str
    replayed: bool
    head: Head
    request: Request
    first: FirstRequest | None


class Known(NamedTuple):
    """What is known of an operation: `outcome` is None while it runs."""

    id: str
    head: Head
    request: Request
    outcome: Outcome | None

    @property
    def state(self) -> State:
        return State(self.head.state)


def _digest(parts: Sequence[bytes]) -> str:
    """128 bits in 22 characters over length-prefixed parts, so that no two different lists look alike."""
    joined = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return b64encode(blake2b(joined, digest_size=16).digest())[:22].decode()


class Operations:
    """Operations as callers and agents see them, for one gateway."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        router: Router,
        courier: Courier,
        waiters: Waiters,
        egress: Egress,
        tokens: CompletionTokens,
        session: Session,
        metrics: Metrics,
        retention_ms: int,
        rejoin: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._router = router
        self._courier = courier
        self._waiters = waiters
        self._egress = egress
        self._tokens = tokens
        self._session = session
        self._metrics = metrics
        self._retention_ms = retention_ms
        self._rejoin = rejoin

    # Start --------------------------------------------------------------------------------------------------------

    async def start(self, order: Order, *, wait: bool) -> Placed:
        """Accept an operation durably and send its first attempt; `wait`: the caller's request stays open for it.

        Raises NotFound (endpoint, service, operation), Malformed (callback URL), Conflict `key_reused`, Unavailable.
        """
        endpoint = await self._catalog.locate(order.endpoint, order.namespace)
        listed = self._catalog.check_operation(endpoint, order.service, order.operation)
        if listed is not None and listed.input is not None:
            listed.input.check(order.body or b"null", order.input_at)
        if order.callback_url:
            self._egress.vet(order.callback_url)
        request = Request(
            endpoint.name,
            order.service,
            order.operation,
            order.content_type,
            order.headers,
            order.callback_url,
            order.callback_format,
            order.callback_headers,
            order.request_ms,
            order.labels,
            order.key,
            order.links,
        )
        admitted = self._router.admit(endpoint)
        start = self._start_arguments(order, endpoint, "" if not isinstance(admitted, str) else admitted)
        first = self._waiters.open(start.id) if wait else None
        sent = False
        try:
            reply = await self._accept(start, request, order.body)
            if isinstance(reply, Accepted):
                self._metrics.start("accepted")
                head = _fresh_head(start, reply)
                if reply.attempt and not isinstance(admitted, str):
                    sent = True
                    self._courier.start(Work(start.id, Kind.START, head, request, order.body), endpoint, admitted)
                elif reply.attempt:
                    # Resent after a lost reply: the lease was taken although this gateway knew a hindrance.
                    self._courier.take([Work(start.id, Kind.START, head, request, order.body)])
                placed, first = Placed(start.id, replayed=False, head=head, request=request, first=first), None
                return placed
            if isinstance(reply, KeyReused):
                self._metrics.start("key_reused")
                detail = (
                    f"the idempotency key was used for another request (operation {reply.id});"
                    " use a new key for new content"
                )
                raise Conflict(detail, code="key_reused", operation_id=reply.id)
            self._metrics.start("replayed")
            record = await self._store.read(reply.id)
            if record is None:
                # Purged in between: the key is free again, so a repeat starts a new operation.
                detail = "the earlier operation of this key was just purged; repeat the request"
                raise Unavailable(detail, code="purged_meanwhile")
            return Placed(reply.id, replayed=True, head=record.head, request=record.request, first=None)
        finally:
            if first is not None:
                self._waiters.close(start.id, first)
            if not sent and not isinstance(admitted, str):
                self._router.settle(endpoint, admitted, Routed.NEUTRAL)

    def _start_arguments(self, order: Order, endpoint: Endpoint, blocked: str) -> Start:
        policy = endpoint.policy
        names = [order.endpoint.encode(), order.service.encode(), order.operation.encode()]
        content_type = b"" if order.content_type is None else b"=" + order.content_type.encode("latin-1")
        return Start(
            id=operation_id(),
            ns=order.namespace,
            endpoint=endpoint.id,
            key=_digest([order.namespace.encode(), *names, order.key.encode()]) if order.key else "",
            digest=_digest([*names, order.body, content_type, order.callback_url.encode()]),
            session=self._session.name,
            close_ms=order.close_ms or policy.schedule_to_close_ms or 0,
            start_ms=order.start_ms or policy.schedule_to_start_ms or 0,
            run_ms=order.run_ms or policy.start_to_close_ms or 0,
            beat_ms=policy.heartbeat_ms or 0,
            lease_ms=(order.request_ms or policy.request_timeout_ms) + LEASE_GRACE_MS,
            attempts_max=policy.retry.max_attempts,
            retention_ms=self._retention_ms,
            callback=1 if order.callback_url else 0,
            blocked=blocked,
        )

    async def _accept(self, start: Start, request: Request, body: bytes) -> Accepted | Replayed | KeyReused:
        try:
            try:
                return await self._store.start(start, request, body)
            except NoSession:
                await self._rejoin()
                start.session = self._session.name
                return await self._store.start(start, request, body)
        except NoEndpoint:
            detail = f"endpoint {request.endpoint!r} was deleted a moment ago"
            raise NotFound(detail, code="unknown_endpoint") from None

    async def first_outcome(self, placed: Placed, wait_s: float, gone: Callable[[], Awaitable[None]]) -> Known | None:
        """The outcome within `wait_s`, for the request that started the operation; None when it is not there yet.

        Afterwards the request is no longer open: what ends later owes the callback. `gone` returns when the caller
        hangs up.
        """
        first = placed.first
        if first is None:
            return await self.outcome(placed, wait_s)
        deadline_s = monotonic_s() + wait_s
        try:
            ending = await _within(first.settled, min(wait_s, QUICK_S))
            if ending is None and not first.settled.done() and wait_s > QUICK_S:
                found = await self._watch_first(placed, first, deadline_s, gone)
                if found is not None:
                    return found
            if first.claimed or first.settled.done():
                # The outcome is on its way into the store and counts on this request to carry it.
                ending = await _within(first.settled, BOOKING_S)
                if ending is None:
                    return await self.outcome(placed, 0)
                head = msgspec.structs.replace(
                    placed.head,
                    state=ending.state,
                    attempt=ending.attempt,
                    seq=ending.seq,
                    closed_at=ending.closed_at_ms,
                    stamp=ending.closed_at_ms - placed.head.created_at,
                    blocked="",
                )
                return Known(placed.id, head, placed.request, ending.outcome)
            return None
        finally:
            self._waiters.close(placed.id, first)

    async def _watch_first(
        self, placed: Placed, first: FirstRequest, deadline_s: float, gone: Callable[[], Awaitable[None]]
    ) -> Known | None:
        """Wait on all ways an operation can end: here, at another gateway, by its timers. None: over, or claimed."""
        hung_up = asyncio.ensure_future(gone())
        try:
            with self._waiters.watching(placed.id) as moved:
                first.settled.add_done_callback(lambda _: moved.set())
                hung_up.add_done_callback(lambda _: moved.set())
                while not first.settled.done() and not hung_up.done():
                    if not first.claimed:
                        known = await self.read(placed.id)
                        if known is not None and known.state.terminal and not first.claimed:
                            return known
                    left_s = deadline_s - monotonic_s()
                    if left_s <= 0 or self._waiters.ended:
                        break
                    await wait_for(moved, left_s)
        finally:
            hung_up.cancel()
        return None

    async def outcome(self, placed: Placed, wait_s: float) -> Known | None:
        """The outcome within `wait_s`, for anybody; None while it runs."""
        known = await self.result(placed.id, placed.head.namespace, wait_s)
        return known if known.state.terminal else None

    # Read ---------------------------------------------------------------------------------------------------------

    async def read(self, operation: str) -> Known | None:
        """The present record whatever its namespace; routes use `get`."""
        record = await self._store.read(operation)
        return None if record is None else Known(operation, record.head, record.request, record.outcome)

    async def get(self, operation: str, namespace: str) -> Known:
        """Raises NotFound, also for another namespace's operation."""
        known = await self.read(operation) if is_operation_id(operation) else None
        if known is None or known.head.namespace != namespace:
            raise unknown_operation(operation)
        return known

    async def result(self, operation: str, namespace: str, wait_s: float) -> Known:
        """The record once it is terminal, or after `wait_s` as it is. Raises NotFound."""
        known = await self.get(operation, namespace)
        if not known.state.terminal and wait_s > 0:
            deadline_s = monotonic_s() + wait_s
            with self._waiters.watching(operation) as moved:
                while True:
                    known = await self.get(operation, namespace)
                    left_s = deadline_s - monotonic_s()
                    if known.state.terminal or left_s <= 0 or self._waiters.ended:
                        break
                    await wait_for(moved, left_s)
        return known

    async def events(self, operation: str, namespace: str, after: int) -> tuple[Record, list[tuple[int, Entry]]]:
        """The history after sequence number `after`. Raises NotFound."""
        record = await self._store.read(operation, events=True) if is_operation_id(operation) else None
        if record is None or record.head.namespace != namespace:
            raise unknown_operation(operation)
        return record, list(enumerate(record.events, start=1))[after:]

    # End ----------------------------------------------------------------------------------------------------------

    async def cancel(self, operation: str, namespace: str) -> str:
        """`canceled`, `requested`, or `same` for a repeat or an ended operation. Raises NotFound."""
        moved = None
        if is_operation_id(operation):
            moved = await self._store.cancel(operation, namespace, self._session.name)
        if moved is None:
            raise unknown_operation(operation)
        self._waiters.tell(operation)
        if moved.work is not None:
            self._courier.take([moved.work])
        return moved.verdict

    async def complete(self, token: str, completion: WireCompletion) -> None:
        """Record what an agent reports under its completion token (decision 31).

        Raises Unauthenticated (forged, expired, of an earlier run), NotFound or Gone (deleted), Conflict (another
        outcome stands, or the lease is lost).
        """
        claim = self._tokens.check(token, now_ms() / 1000)
        if completion.failure is None:
            event = Event.SUCCEED
            outcome = Outcome("result", "", completion.content_type, completion.body)
        else:
            event = Event.CANCEL if completion.state == "canceled" else Event.FAIL
            outcome = Outcome("failure", body=failure_json(completion.failure))
        completed = await self._courier.complete(
            claim.operation_id, claim.run, claim.attempt, event, outcome, by_token=True
        )
        raise_for(completed.verdict, claim.operation_id)

    async def heartbeat(self, tasks: Sequence[tuple[str, int]]) -> list[str]:
        """Renew leases: (completion token, lease_ms or 0) -> `ok`, `cancel`, `lost`, `ended`, `unknown`, `invalid`."""
        now_s = now_ms() / 1000
        replies = ["invalid"] * len(tasks)
        genuine: list[tuple[int, Task]] = []
        for position, (token, lease_ms) in enumerate(tasks):
            try:
                claim = self._tokens.check(token, now_s)
            except Unauthenticated:
                continue
            genuine.append((position, Task(claim.operation_id, claim.run, claim.attempt, lease_ms)))
        if genuine:
            answers = await self._store.heartbeat([task for _, task in genuine])
            for (position, _), answer in zip(genuine, answers, strict=True):
                replies[position] = answer
        return replies


def unknown_operation(operation: str) -> NotFound:
    """The one wording for an operation that is not there, or not there for this namespace."""
    return NotFound(f"there is no operation {operation[:64]!r}", code="unknown_operation")


def raise_for(verdict: Completion, operation: str) -> None:
    """The refusal that a completion's verdict stands for; returns for accepted and equal duplicates."""
    if verdict in (Completion.DONE, Completion.SAME, Completion.DROPPED):
        return
    if verdict is Completion.OTHER:
        detail = f"operation {operation} already has another outcome; the first one stands"
        raise Conflict(detail, code="other_outcome", operation_id=operation)
    if verdict is Completion.LEASE_LOST:
        detail = f"this attempt of operation {operation} was given up; another attempt owns it now"
        raise Conflict(detail, code="lease_lost", operation_id=operation)
    if verdict is Completion.STALE_RUN:
        raise Unauthenticated("the completion token is of an earlier run", code="token_stale")
    raise Gone(f"operation {operation} is past its retention", code="operation_gone")


def _fresh_head(start: Start, accepted: Accepted) -> Head:
    """The head that `start.lua` wrote."""
    at_ms = accepted.at_ms
    return Head(
        state=State.SCHEDULED, run=1, attempt=accepted.attempt, seq=2, stamp=0, created_at=at_ms, closed_at=0,
        owner=start.session if accepted.attempt else "", start=Delivery.LEASED if accepted.attempt else Delivery.DUE,
        start_at=at_ms + start.lease_ms, cancel=0, cancel_at=0, cancel_tries=0, wants_callback=start.callback,
        callback=0, callback_at=0, callback_tries=0, close_by=at_ms + start.close_ms if start.close_ms else 0,
        start_by=at_ms + start.start_ms if start.start_ms else 0, run_ms=start.run_ms, finish_by=0,
        beat_ms=start.beat_ms, beat_by=0, lease_ms=start.lease_ms, attempts_max=start.attempts_max,
        retention_ms=start.retention_ms, cancel_asked=0, slot=1, blocked=accepted.blocked, endpoint=start.endpoint,
        namespace=start.ns, key=start.key, digest=start.digest,
    )  # fmt: skip


async def _within(future: asyncio.Future[Ending | None], seconds: float) -> Ending | None:
    """The future's result within `seconds`, else None; the future goes on. Cheaper than asyncio.wait by half."""
    if not future.done():
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def done(_: object = None) -> None:
            if not over.done():
                over.set_result(None)

        alarm = loop.call_later(seconds, done)
        future.add_done_callback(done)
        try:
            await over
        finally:
            alarm.cancel()
            future.remove_done_callback(done)
    return future.result() if future.done() else None
