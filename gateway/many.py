"""Accepting operations: what one must pass before the store is asked, many of them in one step, and what refusals mean.

A part of Operations, which has the collaborators that are only named here. Knows no HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.admission import backlog_full, delayed_full
from gateway.orders import Begun, Later, Order, check_json_type, start_arguments, stored_request
from gateway.payloads import file_bytes
from mesh.errors import Conflict, MeshError, NotFound, TooLarge, Unavailable
from mesh.ids import operation_id
from mesh.machine import State
from mesh.store.starting import BacklogFull, NoEndpoint, NoSession, OtherParent, ParentLost
from mesh.store.verbs import LOOK, Accepted, KeyReused, Replayed
from registry.choice import CANARY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.courier import Session
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.payloads import Payloads
    from gateway.pull.desk import Desk
    from gateway.watermark import Watermark
    from mesh.blobs.spool import Spooled
    from mesh.seats import Seats
    from mesh.store.layout import Request
    from mesh.store.schedules import Fired
    from mesh.store.store import Store
    from mesh.store.verbs import Start
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Router


class Many:
    """Starts of a batch."""

    _store: Store
    _catalog: Catalog
    _router: Router
    _desk: Desk
    _egress: Egress
    _session: Session
    _metrics: Metrics
    _retention_ms: int
    _watermark: Watermark
    _wake: Callable[[str], None]
    _rejoin: Callable[[str], Awaitable[None]]
    _recheck: Callable[[], Awaitable[None]]
    payloads: Payloads
    batches: Seats
    """For those being read."""

    async def _allowed(self, order: Order) -> Endpoint:
        """The endpoint, which takes such an order. Raises NotFound, Malformed, Unprocessable."""
        endpoint = self._catalog.known(order.endpoint, order.namespace)
        if endpoint is None:
            endpoint = await self._catalog.locate(order.endpoint, order.namespace)
        listed = self._catalog.check_operation(endpoint, order.service, order.operation)
        if listed is not None and listed.input is not None:
            check_json_type(order)
            body = order.body if order.large is None else await self._checkable(order.large)
            await self._catalog.examiner.check(listed.input, body or b"null", order.input_at, order.namespace)
        if order.callback_url:
            self._egress.vet(order.callback_url)
        return endpoint

    def _hindrance(self, order: Order, endpoint: Endpoint) -> str:
        if endpoint.pulls:
            return self._desk.reason(endpoint, order.pin)
        return self._router.hindrance(endpoint, order.pin)

    def _note(self, order: Order, endpoint: Endpoint) -> None:
        """A start was accepted. What the mesh starts itself says nothing of callers."""
        if order.pin[:1] == CANARY:
            self._metrics.start("canary")
            return
        self._metrics.start("accepted")
        self._catalog.callers.note(endpoint.id, order.service, order.operation, order.namespace)

    async def _checkable(self, large: Spooled) -> bytes:
        """A large input in memory, for its schema. Raises TooLarge."""
        if large.size > self.payloads.body_bytes_max:
            most = f"{self.payloads.body_bytes_max} bytes ([gateway] body_bytes_max)"
            detail = f"the operation has a JSON Schema, and inputs over {most} cannot be checked"
            detail += "; more is taken where the agent declares its input as mesh.Blob"
            raise TooLarge(detail, code="input_unchecked")
        return await file_bytes(large.path)

    async def _put_away(self, order: Order) -> Order:
        """Keep a large input before there is a record of it: what refers to it must find it. Raises StorageFull."""
        one = operation_id()
        kept = self.payloads
        if order.large is None:
            data = await kept.keep_bytes(one, order.body, order.namespace)
        else:
            data = await kept.keep(one, order.large)
        return replace(order, id=one, data=data, body=b"", large=None)

    async def start_many(self, orders: Sequence[Order]) -> list[Begun | MeshError]:
        """Accept up to START_MANY_MAX operations in one step of the store; their timers send them, also at once.

        In place of an operation what `start` would have raised for it. Raises Unavailable: none is surely accepted.
        """
        found: list[Begun | MeshError | None] = []
        wanted: list[tuple[Order, Endpoint, Start, Request]] = []
        reasons: dict[str, str] = {}
        for order in orders:
            try:
                endpoint = await self._allowed(order)
                if len(order.body) > self.payloads.inline_bytes_max:
                    order = await self._put_away(order)  # noqa: PLW2901 - the same one, its input elsewhere
            except MeshError as refusal:
                found.append(refusal)
                continue
            way = endpoint.id + order.pin
            if way not in reasons:
                reasons[way] = self._hindrance(order, endpoint)
            start = start_arguments(
                replace(order, later=order.later or Later()), endpoint, session=self._session.name,
                blocked=reasons[way], retention_ms=self._retention_ms,
            )  # fmt: skip
            if self._watermark.full and not await self._store.knows(start.key):
                found.append(self._watermark.refusal())
                continue
            found.append(None)
            wanted.append((order, endpoint, start, stored_request(order, endpoint)))
        begun = await self._accept_many(wanted)
        replies = iter(begun)
        if any(isinstance(one, Begun) and not one.blocked for one in begun):
            self._wake(LOOK)
        return [one if one is not None else next(replies) for one in found]

    async def start_scheduled(self, order: Order, fire: Callable[[Start, Request], Awaitable[Fired]]) -> Fired:
        """Have `fire` decide and start `order`. Raises as `start`."""
        endpoint = await self._allowed(order)
        request = stored_request(order, endpoint)
        start = start_arguments(
            replace(order, later=Later()), endpoint, session=self._session.name,
            blocked=self._hindrance(order, endpoint), retention_ms=self._retention_ms,
        )  # fmt: skip
        try:
            try:
                fired = await fire(start, request)
            except NoSession:
                await self._rejoin(start.session)
                start.session = self._session.name
                fired = await fire(start, request)
        except (NoEndpoint, BacklogFull) as lost:
            raise await self._lost(lost, request, order.namespace) from None
        if fired.word == "started":
            self._note(order, endpoint)
            self._wake(LOOK)
        return fired

    async def check_order(self, order: Order) -> None:
        """Raise what `start` would raise for it now, without starting it."""
        await self._allowed(order)

    async def _accept_many(self, wanted: Sequence[tuple[Order, Endpoint, Start, Request]]) -> list[Begun | MeshError]:
        calls = [(start, request, order.body) for order, _, start, request in wanted]
        replies = await self._store.start_many(calls) if calls else []
        if any(isinstance(one, NoSession) for one in replies):
            await self._rejoin(calls[0][0].session)
            for start, _, _ in calls:
                start.session = self._session.name
            # What was accepted is found by its id.
            replies = await self._store.start_many(calls)
        found: list[Begun | MeshError] = []
        for (order, endpoint, start, request), reply in zip(wanted, replies, strict=True):
            if isinstance(reply, Accepted):
                self._note(order, endpoint)
                later = order.later.begins_ms(reply.at_ms) if order.later is not None else 0
                found.append(Begun(start.id, State.SCHEDULED, blocked=reply.blocked, starts_at_ms=later))
            elif isinstance(reply, Replayed):
                self._metrics.start("replayed")
                found.append(Begun(reply.id, reply.state, replayed=True))
            else:
                used = isinstance(reply, KeyReused)
                found.append(self._reused(reply) if used else await self._lost(reply, request, start.ns))
            if order.data is not None and not isinstance(reply, Accepted):
                await self.payloads.drop(order.id)
        return found

    def _reused(self, reply: KeyReused) -> Conflict:
        self._metrics.start("key_reused")
        detail = (
            f"the idempotency key was used for another request (operation {reply.id}); use a new key for new content"
        )
        return Conflict(detail, code="key_reused", operation_id=reply.id)

    async def _lost(self, lost: Exception, request: Request, namespace: str) -> MeshError:
        """What a refusal of the store means to the caller. Raises StoreUnsafe where the store is another one."""
        if isinstance(lost, ParentLost):
            detail = "the attempt that starts this child was given up, or its operation has ended"
            return Conflict(detail, code="lease_lost", operation_id=str(lost))
        if isinstance(lost, OtherParent):
            detail = (
                f"the idempotency key is of operation {lost}, which this call of the parent did not start, so that its"
                " end would not be told to it; use a key of its own"
            )
            return Conflict(detail, code="other_parent", operation_id=str(lost))
        if isinstance(lost, NoEndpoint):
            # Known a moment ago: deleted since, or the store lost everything.
            await self._recheck()
            detail = f"endpoint {request.endpoint!r} was deleted a moment ago"
            return NotFound(detail, code="unknown_endpoint")
        if isinstance(lost, BacklogFull):
            return (delayed_full if lost.later else backlog_full)(lost, request.endpoint, namespace)
        return lost if isinstance(lost, MeshError) else Unavailable(str(lost), code="session_lost")
