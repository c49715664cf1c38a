"""The pool: requests in, replies or peer faults out. Owns limits, deadlines, and the one timer for them.

A request costs one future and no task or timer of its own. The pool must not know what a request means; every
request it carries has an idempotency key, which is why it may be repeated once on a fresh connection (below).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypedDict

from mesh.errors import NotSent, ReplyLost, ReplyTimeout
from mesh.pool.connection import Connection
from mesh.pool.dial import Dialer
from mesh.pool.head import NO_LINES, Headers, Lines, check_method, request_head
from mesh.pool.lane import Lane
from mesh.pool.reply import Large, Reply, StaleConnection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine

    from mesh.pool.target import Target
    from mesh.streams import Source

CONNECTIONS_PER_HOST_MAX = 64
WAITING_PER_HOST_MAX = 1024
CONNECTIONS_MAX = 2048
IDLE_S = 15.0
CONNECT_TIMEOUT_S = 5.0
REPLY_BYTES_MAX = 4 << 20
HEADER_BYTES_MAX = 64 << 10
CLOSE_TIMEOUT_S = 5.0
_TIMER_SLACK_S = 0.002
_POOL_CLOSED = "The connection pool is closed."
POOL_CLOSED = "pool_closed"
"""Code of the NotSent that no repetition mends."""


class PoolStats(TypedDict):
    """`open` connections (connecting ones included), `idle` ones among them, `waiting` requests."""

    open: int
    idle: int
    waiting: int


async def _sent(connection: Connection, source: Source, future: asyncio.Future[Reply]) -> Reply:
    """The reply, while the body is sent; the source is closed when this returns."""
    connection.surplus = True  # behind a reply that overtakes it the rest of the request would be still to come
    sending = asyncio.ensure_future(connection.send(source, future))
    try:
        return await future
    finally:
        sending.cancel()
        await asyncio.wait([sending])


class Pool:
    """HTTP/1.1 connections to many origins, for one event loop.

    max_per_host, max_open  connections per origin, and in all
    max_waiting             requests queued per origin while all its connections are busy; one more is NotSent
    idle_s                  an idle connection is not reused after this long, and closed soon after
    reply_bytes_max         cap of a reply body where the request names none
    header_bytes_max        cap of a reply's head, and of its trailers
    tls                     context for https; None: system trust, host names checked, TLS 1.2 or later
    """

    def __init__(
        self,
        *,
        max_per_host: int = CONNECTIONS_PER_HOST_MAX,
        max_waiting: int = WAITING_PER_HOST_MAX,
        max_open: int = CONNECTIONS_MAX,
        idle_s: float = IDLE_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        header_bytes_max: int = HEADER_BYTES_MAX,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_per_host = max_per_host
        self._max_waiting = max_waiting
        self._max_open = max_open
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._reply_bytes_max = reply_bytes_max
        self._dialer = Dialer(tls, header_bytes_max)
        self._lanes: dict[str, Lane] = {}
        self._slots = 0
        self._slot_given_back = asyncio.Event()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = float("inf")

    def post(
        self,
        target: Target,
        path: bytes,
        headers: Headers,
        body: bytes | Source,
        *,
        timeout_s: float,
        reply_bytes_max: int | None = None,
        large: Large | None = None,
        lines: Lines = NO_LINES,
    ) -> Coroutine[Any, Any, Reply]:
        """`request` with POST."""
        return self.request(
            b"POST", target, path, headers, body,
            timeout_s=timeout_s, reply_bytes_max=reply_bytes_max, large=large, lines=lines,
        )  # fmt: skip

    async def request(  # noqa: C901 - one request, in the order of what may happen to it
        self,
        method: bytes,
        target: Target,
        path: bytes,
        headers: Headers = (),
        body: bytes | Source = b"",
        *,
        timeout_s: float,
        reply_bytes_max: int | None = None,
        large: Large | None = None,
        lines: Lines = NO_LINES,
    ) -> Reply:
        """Send one request, give the final reply whatever its status (1xx skipped, redirects not followed).

        `path` is the whole request target (`target.path`, or `target.under(...)`). `timeout_s` covers
        waiting, connecting and the last byte of the reply. A reused connection that closes before any byte
        of the reply is replaced by a fresh one, once. Cancelling the caller drops the connection. A `body` that is a
        Source is sent piece by piece, from its beginning on a fresh connection; what it raises is raised here, and the
        peer gets no whole request then. `large` takes a large reply elsewhere than into memory.

        Raises NotSent, ReplyLost, ReplyTimeout, ReplyInvalid as mesh/errors.py defines them (code
        `reply_too_large` for a cap, `pool_closed` after `close`), and Malformed (code `request_invalid`) for what
        cannot be sent at all.
        """
        if self._closed:
            raise NotSent(_POOL_CLOSED, code=POOL_CLOSED)
        if method != b"POST":
            check_method(method)
        source, body = (None, body) if isinstance(body, bytes) else (body, b"")
        head = request_head(method, target, path, headers, len(body) if source is None else source.size, lines)
        lane = self._lanes.get(target.origin)
        if lane is None:
            loop = asyncio.get_running_loop()
            lane = self._lanes[target.origin] = Lane(target.origin, loop, self._idle_s, self._slot_gone)
        loop = lane.loop
        now_s = loop.time()
        deadline_s = now_s + timeout_s
        connection = lane.take_idle(target, now_s) or await self._connection(lane, target, deadline_s)
        limit_bytes = self._reply_bytes_max if reply_bytes_max is None else reply_bytes_max
        if large is not None:
            limit_bytes = large.inline_bytes
        while True:
            if deadline_s < self._timer_at_s:
                self._arm(loop, deadline_s)
            future = connection.exchange(
                head, body, deadline_s, limit_bytes, head_only=method == b"HEAD", large=large
            )
            try:
                return await (future if source is None else _sent(connection, source, future))
            except StaleConnection:
                connection = await self._reconnect(lane, target, deadline_s)
            except asyncio.CancelledError:
                if connection.stale:
                    lane.give_up_slot()
                elif connection.future is future:
                    connection.drop()
                raise

    def stats(self) -> PoolStats:
        """Figures for metrics."""
        lanes = self._lanes.values()
        return {
            "open": self._slots,
            "idle": sum(len(lane.idle) for lane in lanes),
            "waiting": sum(len(lane.waiting) for lane in lanes),
        }

    async def close(self) -> None:
        """Refuse new requests, fail those waiting (NotSent) and in flight (ReplyLost), close connections.

        A request that is still connecting notices by itself and ends with NotSent.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for lane in self._lanes.values():
            lane.refuse_waiters(_POOL_CLOSED)
            for connection in tuple(lane.connections):
                connection.fail(ReplyLost(f"The connection pool was closed before {lane.origin} replied."))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while any(lane.connections for lane in self._lanes.values()):
                    self._slot_given_back.clear()
                    await self._slot_given_back.wait()
        self._lanes.clear()

    # -- connections and their slots

    async def _connection(self, lane: Lane, target: Target, deadline_s: float) -> Connection:
        """A connection that nobody else uses: a fresh one while slots last, else one's turn in the queue."""
        waited = False
        while True:
            if lane.slots < self._max_per_host and not lane.waiting:
                self._take_slot(lane)
                return await self._connect(lane, target, deadline_s)
            if len(lane.waiting) >= self._max_waiting:
                message = f"All {lane.slots} connections to {lane.origin} are busy, {self._max_waiting} wait."
                raise NotSent(message)
            if deadline_s < self._timer_at_s:
                self._arm(lane.loop, deadline_s)
            connection = await lane.wait(deadline_s, first=waited)
            if connection is None:
                return await self._connect(lane, target, deadline_s)
            if not connection.closed and connection.leads_to(target.addresses):
                return connection
            connection.drop()  # its slot comes back through `Lane.lost`
            waited = True

    def _take_slot(self, lane: Lane) -> None:
        if self._slots >= self._max_open:
            idle = [other.idle[0] for other in self._lanes.values() if other.idle]
            if not idle:
                message = f"No free connection: all {self._max_open} are busy."
                raise NotSent(message)
            min(idle, key=lambda connection: connection.idle_at_s).drop()
        lane.slots += 1
        self._slots += 1

    def _slot_gone(self) -> None:
        self._slots -= 1
        self._slot_given_back.set()

    async def _connect(self, lane: Lane, target: Target, deadline_s: float) -> Connection:
        """Fill a slot that the caller owns; on any failure the slot is given up. Raises NotSent."""
        loop = lane.loop
        limit_s = min(deadline_s, loop.time() + self._connect_timeout_s)
        try:
            connection = await self._dialer.dial(lane, loop, target, limit_s)
        except BaseException:
            lane.give_up_slot()
            raise
        if self._closed:
            connection.drop()
            lane.give_up_slot()
            raise NotSent(_POOL_CLOSED, code=POOL_CLOSED)
        lane.connections.add(connection)
        return connection

    async def _reconnect(self, lane: Lane, target: Target, deadline_s: float) -> Connection:
        """A fresh connection in a stale one's slot. Raises ReplyLost: the stale one may have been heard."""
        try:
            return await self._connect(lane, target, deadline_s)
        except NotSent as fault:
            message = f"{target.origin} closed the connection before any reply; then: {fault.detail}"
            raise ReplyLost(message) from fault

    # -- time

    def _arm(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        """Wake for `deadline_s`, and within `idle_s` in any case. To be asked again after every await."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = min(deadline_s, loop.time() + self._idle_s)
        self._timer = loop.call_at(self._timer_at_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail what is late, close what was idle too long, forget empty lanes, arm the timer again."""
        due_s = loop.time() + _TIMER_SLACK_S
        self._timer, self._timer_at_s = None, float("inf")
        next_s = due_s + self._idle_s
        for origin, lane in tuple(self._lanes.items()):
            for connection in tuple(lane.connections):
                end_s = connection.deadline_s if connection.future else connection.idle_at_s + self._idle_s
                if end_s > due_s:
                    next_s = min(next_s, end_s)
                else:
                    connection.fail(ReplyTimeout(f"{origin} gave no complete reply in time."))
            lane.refuse_waiters(f"No connection to {origin} became free in time.", due_s)
            next_s = min([next_s, *(deadline_s for _, deadline_s in lane.waiting)])
            if lane.is_over():
                del self._lanes[origin]
        if self._lanes and not self._closed:
            self._arm(loop, next_s)
