"""The single door: every route, adapter, console view and CLI verb about operations goes through here.

Owns what accepting and ending an operation means; reading and waiting it has from reading.py. Knows neither HTTP
routes nor keys of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.admission import room
from gateway.carrying import Carrying
from gateway.journals import Journals, foreign_token, raise_for
from gateway.many import Many
from gateway.orders import (
    Known,
    Order,
    Parent,
    Placed,
    fetched_head,
    fresh_head,
    later_head,
    start_arguments,
    stored_request,
)
from gateway.outcomes import trace_headers
from gateway.reading import unknown_operation
from mesh.clock import now_ms
from mesh.errors import Gone, Refusal, Unauthenticated, Unavailable
from mesh.ids import is_operation_id
from mesh.machine import Event, Kind
from mesh.seats import Seats
from mesh.store.layout import Outcome, Request
from mesh.store.pulls import PullStore
from mesh.store.starting import BacklogFull, NoEndpoint, NoSession, OtherParent, ParentLost
from mesh.store.store import Store
from mesh.store.verbs import LOOK, Accepted, ChildStart, KeyReused, Replayed, Start, Work
from mesh.wire import failure_json, format_link
from registry.routing import Outcome as Routed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from gateway.courier import Courier, Session
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.payloads import Payloads
    from gateway.pull.desk import Desk
    from gateway.waiters import Waiters
    from gateway.watermark import Watermark
    from mesh.blobs.spool import Spooled
    from mesh.tokens import Claim, CompletionTokens
    from mesh.wire import Completion as WireCompletion
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Router


SOON_MS: Final = 500
"""What begins sooner might be passed over by a look at the timers that was just made."""

BATCHES_MAX: Final = 8
"""Read at the same time by one gateway."""
EACH_BATCHES_MAX: Final = 4
"""Of one namespace: none takes the seats of all the others."""
_START: Final = Kind.START
AGENTS: Final = ""
"""Whoever holds a task, all together; no namespace is called so."""

__all__ = ["Known", "Operations", "Order", "Parent", "Placed"]


class Operations(Carrying, Many, Journals):
    """Operations as callers and agents see them, for one gateway."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        router: Router,
        courier: Courier,
        desk: Desk,
        waiters: Waiters,
        egress: Egress,
        tokens: CompletionTokens,
        session: Session,
        metrics: Metrics,
        payloads: Payloads,
        watermark: Watermark,
        retention_ms: int,
        rejoin: Callable[[str], Awaitable[None]],
        recheck: Callable[[], Awaitable[None]],
    ) -> None:
        """`rejoin` replaces a lost session, `recheck` raises StoreUnsafe when the store is no longer the one it was."""
        super().__init__(store, waiters, tokens, metrics, courier.wake, payloads)
        self._catalog = catalog
        self._router = router
        self._courier = courier
        self._desk = desk
        self._egress = egress
        self._session = session
        self._retention_ms = retention_ms
        self._watermark = watermark
        self._rejoin = rejoin
        self._recheck = recheck
        self.batches = Seats(BATCHES_MAX, EACH_BATCHES_MAX)

    async def check_json(self, body: bytes, namespace: str) -> None:
        """Raise unless `body` of `namespace`, costly to read, is strict JSON; the event loop goes on meanwhile.

        Raises Malformed `json_invalid`, Unprocessable `check_too_long`, TooMany `checks_busy`.
        """
        await self._catalog.examiner.read(body, namespace)

    async def check_tasks_json(self, body: bytes, tokens: Sequence[str]) -> None:
        """The same for what agents say of `tasks`; whoever holds no task cannot make the gateway read on."""
        if any(self._claims(tokens)):
            await self.check_json(body, AGENTS)

    def start(self, order: Order, *, wait: bool) -> Coroutine[Any, Any, Placed]:
        """Accept an operation durably; `wait`: the caller's request stays open for its outcome.

        Whoever asks makes the first attempt where the reply has one: by `carry` who waits, else by `send`.

        Raises NotFound (endpoint, service, operation), Malformed (callback URL), Conflict `key_reused`, Unavailable.
        """
        # Each coroutine between a request and the store costs at every wait.
        if order.large is None and len(order.body) <= self.payloads.inline_bytes_max:
            return self._place(order, wait=wait)
        return self._start_large(order, wait=wait)

    async def _start_large(self, order: Order, *, wait: bool) -> Placed:
        endpoint = await self._allowed(order)
        order, claim = await self._as_child(order, order.parent) if order.parent is not None else (order, None)
        order = await self._put_away(order)
        try:
            placed = await self._place(order, endpoint, claim, wait=wait)
        except Refusal:
            await self.payloads.drop(order.id)  # there is no record of this id, and there never will be
            raise
        if placed.replayed:
            await self.payloads.drop(order.id)
        return placed

    async def _place(
        self, order: Order, endpoint: Endpoint | None = None, claim: Claim | None = None, *, wait: bool
    ) -> Placed:
        if endpoint is None:
            endpoint = await self._allowed(order)
            if order.parent is not None:
                order, claim = await self._as_child(order, order.parent)
        if order.later is not None:
            return await self._start_later(order, endpoint, claim, wait=wait)
        if endpoint.pulls:
            return await self._start_for_pollers(order, endpoint, claim, wait=wait)
        request = stored_request(order, endpoint)
        admitted = self._router.admit(endpoint, order.pin)
        blocked = admitted if isinstance(admitted, str) else ""
        start = start_arguments(
            order, endpoint, session=self._session.name, blocked=blocked, retention_ms=self._retention_ms, claim=claim
        )
        first = self._waiters.open(start.id) if wait else None
        sent, attempt = False, None
        try:
            reply = await self._accept(start, request, order.body)
            if isinstance(reply, Accepted):
                self._note(order, endpoint)
                head = fresh_head(start, reply)
                quota = room(endpoint, order.namespace, reply)
                if reply.attempt and not isinstance(admitted, str):
                    sent = True
                    attempt = (Work(start.id, _START, head, request, order.body), endpoint, admitted)
                elif reply.attempt:
                    # Resent after a lost reply: the lease was taken although this gateway knew a hindrance.
                    self._courier.take([Work(start.id, _START, head, request, order.body)])
                placed = Placed(
                    start.id, replayed=False, head=head, request=request, first=first, quota=quota, attempt=attempt
                )
                first = None
                return placed
            return await self._earlier(reply)
        finally:
            if first is not None:
                self._waiters.close(start.id, first)
            if not sent and not isinstance(admitted, str):
                self._router.settle(endpoint, admitted, Routed.NEUTRAL)

    async def _as_child(self, order: Order, parent: Parent) -> tuple[Order, Claim]:
        """`order` in the trace of its parent, unless it names one itself. Raises Unauthenticated, Gone."""
        claim = self._tokens.check(parent.token, now_ms() / 1000)
        if any(name == b"traceparent" for name, _ in order.headers):
            return order, claim
        record = await self._store.read(claim.operation_id)
        if record is None:
            raise Gone(f"operation {claim.operation_id} is past its retention", code="operation_gone")
        return replace(order, headers=[*order.headers, *trace_headers(record.request)]), claim

    async def _start_for_pollers(self, order: Order, endpoint: Endpoint, claim: Claim | None, *, wait: bool) -> Placed:
        """Accept an operation whose agents ask for their work: for a poll that waits here, else into the line."""
        poll = self._desk.reserve(endpoint, order.service, len(order.body), order.pin)
        request = stored_request(order, endpoint)
        blocked = "" if poll is not None else self._desk.reason(endpoint, order.pin)
        start = start_arguments(
            order, endpoint, session=self._session.name, blocked=blocked, retention_ms=self._retention_ms, claim=claim
        )
        first = self._waiters.open(start.id) if wait else None
        try:
            seat = () if poll is None else PullStore.seat(poll.instance, poll.lease_ms, poll.pin[1:])
            reply = await self._accept(start, request, order.body, seat)
            if not isinstance(reply, Accepted):
                return await self._earlier(reply)
            self._metrics.start("accepted")
            head = fresh_head(start, reply)
            quota = room(endpoint, order.namespace, reply)
            if poll is not None and reply.fetched:
                head = fetched_head(head, poll.instance, poll.lease_ms)
                taker, poll = poll, None
                self._desk.hand(taker, Work(start.id, _START, head, request, order.body), reply.at_ms)
            elif reply.attempt:
                # Since a moment ago its agents are sent their work.
                self._courier.take([Work(start.id, _START, head, request, order.body)])
            placed, first = Placed(start.id, replayed=False, head=head, request=request, first=first, quota=quota), None
            return placed
        finally:
            if first is not None:
                self._waiters.close(start.id, first)
            if poll is not None:
                poll.let_go(size=len(order.body))

    async def _start_later(self, order: Order, endpoint: Endpoint, claim: Claim | None, *, wait: bool) -> Placed:
        """Accept an operation that its timer sends, from whichever gateway looks first then."""
        request = stored_request(order, endpoint)
        start = start_arguments(
            order, endpoint, session=self._session.name, blocked="", retention_ms=self._retention_ms, claim=claim
        )
        first = self._waiters.open(start.id) if wait else None
        try:
            reply = await self._accept(start, request, order.body)
            if not isinstance(reply, Accepted):
                return await self._earlier(reply)
            self._note(order, endpoint)
            if order.later is not None and order.later.left_ms() < SOON_MS:
                self._wake(LOOK)
            head = later_head(fresh_head(start, reply), start)
            quota = room(endpoint, order.namespace, reply)
            placed, first = Placed(start.id, replayed=False, head=head, request=request, first=first, quota=quota), None
            return placed
        finally:
            if first is not None:
                self._waiters.close(start.id, first)

    async def _earlier(self, reply: Replayed | KeyReused) -> Placed:
        """The operation that has the key already. Raises Conflict `key_reused`, Unavailable."""
        if isinstance(reply, KeyReused):
            raise self._reused(reply)
        self._metrics.start("replayed")
        record = await self._store.read(reply.id)
        if record is None:
            # Purged in between: the key is free again, so a repeat starts a new operation.
            detail = "the earlier operation of this key was just purged; repeat the request"
            raise Unavailable(detail, code="purged_meanwhile")
        return Placed(reply.id, True, record.head, record.request, None, record.journal, record.links)  # noqa: FBT003

    async def _accept(
        self, start: Start, request: Request, body: bytes, seat: tuple[bytes, ...] = ()
    ) -> Accepted | Replayed | KeyReused:
        if self._watermark.full and not isinstance(start, ChildStart) and not await self._store.knows(start.key):
            raise self._watermark.refusal()
        try:
            try:
                return await self._store.start(start, request, body, seat)
            except NoSession:
                await self._rejoin(start.session)
                start.session = self._session.name
                return await self._store.start(start, request, body, seat)
        except (ParentLost, OtherParent, NoEndpoint, BacklogFull) as lost:
            raise await self._lost(lost, request, start.ns) from None

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
        self._wake(moved.line)
        return moved.verdict

    def check_token(self, token: str, about: str = "") -> str:
        """Of which operation; raises Unauthenticated for no token of an attempt (of `about`) of this mesh."""
        claim = self.claim_of(token)
        if about and claim.operation_id != about:
            raise foreign_token()
        return claim.operation_id

    def claim_of(self, token: str) -> Claim:
        """What a task token speaks for. Raises Unauthenticated."""
        return self._tokens.check(token, now_ms() / 1000)

    async def complete(
        self, token: str, completion: WireCompletion, *, about: str = "", large: Spooled | None = None,
        calls_back: bool = False,
    ) -> Work | None:  # fmt: skip
        """Record what an agent reports under its completion token (P50); `about`: the operation it names, or "".

        `large`: the result, where it came in a file. `calls_back`: who asks makes the callback that is owed now, if the
        reply is one; else it is made by itself.

        Raises Unauthenticated (forged, expired, of an earlier run or another operation), Gone (deleted), Conflict
        (another outcome stands, or the lease is lost).
        """
        claim = self._tokens.check(token, now_ms() / 1000)
        if about and about != claim.operation_id:
            raise Unauthenticated("the completion token is of another operation", code="token_foreign")
        links = [format_link(link) for link in completion.links]
        if completion.failure is None:
            event = Event.SUCCEED
            data = await self.payloads.keep(claim.operation_id, large) if large is not None else None
            outcome = Outcome("result", "", completion.content_type, completion.body, links=links, data=data)
        else:
            event = Event.CANCEL if completion.state == "canceled" else Event.FAIL
            outcome = Outcome("failure", body=failure_json(completion.failure), links=links)
        completed = await self._courier.complete(
            claim.operation_id, claim.run, claim.attempt, event, outcome, calls_back=calls_back
        )
        raise_for(completed.verdict, claim.operation_id)
        return completed.callback if calls_back else None
