"""The link: one self-healing connection on which every store call of this process travels.

Owns batching (all calls of one event-loop turn leave in one write, so that they share one fsync; while the store is at
work those of two; one that nobody waits for may ride along with those of a later turn), order, deadlines, caps,
reconnecting and re-sending. Must not know what commands mean; it relies on two promises of its users: a call with
`resend` is idempotent, and no call blocks the server (BLPOP, SUBSCRIBE and the like).

The life of a call: `_fresh` (asked, never left) -> `Connection.inflight` (written) -> answered, or, when the
connection is lost, `_again` (written once, waits for the next connection) -> `inflight` ...
Past its deadline a call from `_fresh` is StoreUnavailable (surely not applied); any other is OutcomeUnknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mesh.clock import monotonic_s, sleep
from mesh.errors import ConfigError, MeshError, OutcomeUnknown, StoreUnavailable, StoreUnsafe
from mesh.ids import jittered
from mesh.store.address import Address
from mesh.store.connection import Arg, Call, Connection, StoreReply, Waiting, fresh, pack, words
from mesh.store.dial import Fence, dial
from mesh.store.merging import MERGED_MAX, Merging, Parts
from mesh.store.riding import Riding
from mesh.store.subscriber import Subscriber

__all__ = ["Call", "Hook", "Link", "StoreReply", "Subscriber"]

Hook = Callable[[Call], Awaitable[object]]
"""Run on every new connection before any call is sent on it; StoreUnsafe or ConfigError refuses the store."""

DEADLINE_S: Final = 5.0
STALL_S: Final = 5.0
SWEEP_S: Final = 0.1
BACKOFF_S_MIN: Final = 0.02
BACKOFF_S_MAX: Final = 1.0
WAITING_MAX: Final = 20_000
WAITING_BYTES_MAX: Final = 256 * 1024 * 1024
"""Packed bytes of all calls without an answer; they are kept for re-sending."""

_log = logging.getLogger(__name__)


class Link:
    """`connect()`, then `call()` from the event loop's thread only.

    Bounds: `deadline_s` from asking to the answer, `stall_s` without a byte read while calls wait before the
    connection counts as broken, `waiting_max` calls and `waiting_bytes_max` packed bytes without an answer.
    """

    def __init__(
        self,
        address: Address,
        *,
        on_reconnect: Hook | None = None,
        deadline_s: float = DEADLINE_S,
        stall_s: float = STALL_S,
        waiting_max: int = WAITING_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        self.address = address
        self.writes = 0
        """Writes to the socket so far: calls over writes is the depth of the group commit."""
        self._hook = on_reconnect
        self._deadline_s = deadline_s
        self._stall_s = stall_s
        self._waiting_max = self._room = waiting_max
        self._bytes_room = waiting_bytes_max
        self._fresh: list[Waiting] = []
        self._merging: list[Merging] = []
        self._again: deque[Waiting] = deque()
        self._connection: Connection | None = None
        self._shut: MeshError | None = StoreUnavailable("the store link is not connected")
        self._fault: Exception | None = None
        self._turn_open = False
        self._stayed = False
        """The present turn's calls were kept back for those of the next."""
        self._turn_at_s = 0.0
        self._riding = Riding(self._depart)
        self._sweeper: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._new_future: Callable[[], asyncio.Future[Any]] = _future_of_this_loop
        self._fence = Fence()

    async def connect(self, *, within_s: float = DEADLINE_S) -> None:
        """Return once the store is reached and the hook has accepted it; the link then heals itself.

        Raises StoreUnsafe, ConfigError (refused) or StoreUnavailable (not reached); then it is closed.
        """
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._first = self._loop.create_future()
        self._keeper = self._loop.create_task(self._keep(), name="mesh-store-link")
        try:
            async with asyncio.timeout(within_s):
                await self._first
        except TimeoutError:
            await self.close()
            raise self._not_reached() from self._fault
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the link; what was written and not answered is OutcomeUnknown."""
        self._shut = StoreUnavailable("the store link is closed")
        connection, self._connection = self._connection, None
        if connection is not None:
            self._take_back(connection)
            connection.abort()
        self._fail_all(self._shut)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._riding.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    @property
    def up(self) -> bool:
        """Whether a verified connection stands right now."""
        return self._connection is not None

    @property
    def fault(self) -> Exception | None:
        """Why the link is not up: the refusal of the hook or the last failure; None while it is up."""
        return None if self._connection is not None else self._fault

    @property
    def waiting(self) -> int:
        """Calls without an answer yet."""
        return self._waiting_max - self._room

    def call(self, *args: Arg, resend: bool = True) -> asyncio.Future[Any]:
        """Ask for one command. The reply is bytes, int, None, or a list of these (RESP2).

        The future raises StoreReply (an error reply), StoreUnavailable (surely not applied), OutcomeUnknown
        (perhaps applied, repeat it) or StoreUnsafe (the store was refused). `resend=False`: never sent twice.
        """
        future = self._new_future()
        if self._shut is not None or self._room <= 0 or self._bytes_room <= 0:
            return self._turn_away(future)
        packed = pack(args)
        if self._riding.waiting:  # what rides was asked for before
            self._pack_merged()
        if not self._turn_open:
            self._open_turn()
        self._fresh.append((future, packed, self._turn_at_s, resend, 1))
        self._room -= 1
        self._bytes_room -= len(packed)
        return future

    def join(self, merging: Merging, verb: str, parts: Parts, *, rides: bool = False) -> asyncio.Future[Any]:
        """As `call`, for one of the calls that leave together when this turn ends; they must be idempotent.

        `rides`: nobody waits for it, so it causes no write by itself within RIDE_S.
        """
        future = self._new_future()
        if self._shut is not None or self._room <= 0 or self._bytes_room <= 0:
            return self._turn_away(future)
        if not self._turn_open:
            if not rides:
                self._open_turn()
            elif not self._riding.waiting:
                self._turn_at_s = monotonic_s()
                self._riding.begin(self._loop)
        asked = merging.asked
        if not asked:
            self._merging.append(merging)
        asked.append((future, verb, parts))
        self._room -= 1
        if len(asked) >= MERGED_MAX:
            self._pack_merged()
            self._depart()
        return future

    def _pack_merged(self) -> None:
        for merging in self._merging:
            calls = len(merging.asked)
            asker, packed = merging.packed()
            self._fresh.append((asker, packed, self._turn_at_s, True, calls))
            self._bytes_room -= len(packed)
        self._merging.clear()
        self._riding.waiting = False

    def _turn_away(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        full = StoreUnavailable("too many calls are waiting for the store")
        future.set_exception(fresh(self._shut) if self._shut else full)
        return future

    def _open_turn(self) -> None:
        self._turn_open = True
        self._turn_at_s = monotonic_s()
        self._loop.call_soon(self._flush)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _depart(self) -> None:
        if not self._turn_open:
            self._open_turn()

    def _flush(self) -> None:
        connection = self._connection
        if connection is not None and connection.inflight and not self._stayed:
            # The store is at work: what the next turn brings can leave in the same write and share its fsync.
            self._stayed = True
            self._loop.call_soon(self._flush)
            return
        self._stayed = self._turn_open = False
        if self._merging:
            self._pack_merged()
        if connection is None or not connection.writable or not self._fresh:
            return
        calls, self._fresh = self._fresh, []
        self.writes += 1
        connection.send(calls)

    def _replied(self, calls: int, size: int) -> None:
        self._room += calls
        self._bytes_room += size

    # One sweep for all deadlines: a timer per call would cost as much as the call.

    def _sweep(self) -> None:
        self._sweeper = None
        now_s = monotonic_s()
        asked_before_s = now_s - self._deadline_s
        connection = self._connection
        if connection is not None and connection.inflight:
            for future, _, asked_at_s, _, _ in connection.inflight:
                if asked_at_s > asked_before_s:
                    break
                if not future.done():  # the call keeps its place: replies are paired by order
                    future.set_exception(OutcomeUnknown("the store did not answer in time"))
            if max(connection.inflight[0][2], connection.read_at_s) < now_s - self._stall_s:
                connection.abort(TimeoutError(f"the store was silent for {self._stall_s:g} s"))
        while self._again and self._again[0][2] <= asked_before_s:
            reason = f"the store did not come back in time: {words(self._fault)}"
            self._give_up(self._again.popleft(), OutcomeUnknown(reason))
        overdue = 0
        while overdue < len(self._fresh) and self._fresh[overdue][2] <= asked_before_s:
            self._give_up(self._fresh[overdue], self._not_reached())
            overdue += 1
        del self._fresh[:overdue]
        if self.waiting:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _give_up(self, call: Waiting, error: MeshError) -> None:
        self._room += call[4]
        self._bytes_room += len(call[1])
        if not call[0].done():
            call[0].set_exception(error)

    def _fail_all(self, reason: MeshError) -> None:
        self._pack_merged()
        for call in self._again:
            self._give_up(call, OutcomeUnknown(f"sent, and then: {reason.detail}"))
        self._again.clear()
        for call in self._fresh:
            self._give_up(call, fresh(reason))
        self._fresh.clear()

    def _not_reached(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store at {self.address} cannot be reached: {words(self._fault)}")

    # Connecting

    async def _keep(self) -> None:
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                connection = await self._open()
            except (StoreUnsafe, ConfigError) as refusal:
                self._refuse(refusal)
            except (OSError, TimeoutError, MeshError) as fault:
                self._fault = fault
            except Exception as fault:  # noqa: BLE001 - a bug in the hook must not end the task that heals
                _log.exception("the check of a new store connection failed")
                self._fault = fault
            else:
                self._adopt(connection)
                adopted_at_s = connection.read_at_s
                await connection.lost
                self._connection = None
                self._fault = connection.fault
                _log.warning("store connection lost: %s", words(connection.fault))
                self._take_back(connection)
                if connection.read_at_s > adopted_at_s:
                    pause_s = BACKOFF_S_MIN
            await sleep(jittered(pause_s * 1000, 0.2) / 1000)
            pause_s = min(pause_s * 2, BACKOFF_S_MAX)

    async def _open(self) -> Connection:
        connection = await dial(self.address, self._deadline_s)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._fence.raise_on(connection)
                if self._hook is not None:
                    await self._hook(connection.call)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _adopt(self, connection: Connection) -> None:
        connection.owned = True
        connection.on_reply = self._replied
        connection.on_writable = self._flush
        self._connection = connection
        self._shut = None
        self._fault = None
        self._fresh[:0] = self._again
        self._again.clear()
        self._flush()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _take_back(self, connection: Connection) -> None:
        reason = f"the store connection broke before the answer: {words(connection.fault)}"
        for call in connection.inflight:
            if call[3] and not call[0].done():
                self._again.append(call)
            else:
                self._give_up(call, OutcomeUnknown(reason))
        connection.inflight.clear()

    def _refuse(self, refusal: MeshError) -> None:
        if str(refusal) != str(self._shut):
            _log.error("store refused: %s", refusal)
        self._shut = self._fault = refusal
        self._fail_all(refusal)
        if self._first is not None and not self._first.done():
            self._first.set_exception(refusal)


def _future_of_this_loop() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
