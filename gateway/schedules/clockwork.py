"""Fires schedules: claims what is due, and has each time decided and started in one step of the store.

Every gateway does this side by side without a leader. A claim is a short lease that moves nothing, so a gateway that
dies in between loses no time; and what two of them fire is one operation, for its key is the schedule's and the time's.
Many are looked at side by side, one time of each and round, in turns by namespace.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.outcomes import encode_json
from gateway.schedules.spec import ScheduleBody, from_document, order_of
from mesh.clock import sleep, to_rfc3339
from mesh.errors import MeshError, Refusal
from mesh.store.schedules import CLOCK, ScheduleStore, Time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.operations import Operations
    from mesh.store.layout import Request
    from mesh.store.link import Link
    from mesh.store.schedules import DueSchedule, Fired
    from mesh.store.verbs import Start, Work

LOOK_S: Final = 1.0
LEAST_S: Final = 0.005
SEATS: Final = 64
"""Schedules being looked at, so that their calls share fsyncs and one whose check is slow holds up no other."""
NAMESPACE_SEATS: Final = 8
"""Of one namespace."""

_log = logging.getLogger(__name__)


class Clockwork:
    """The schedules' clock of one gateway. `take` sends work that a cancel of an earlier run leased."""

    def __init__(
        self, link: Link, operations: Operations, take: Callable[[Iterable[Work]], None], wake: Callable[[str], None]
    ) -> None:
        self.store = ScheduleStore(link)
        self._operations = operations
        self._take = take
        self._wake = wake
        self._now = asyncio.Event()
        self._held: Counter[str] = Counter()

    def wake(self) -> None:
        """Look at once: a schedule was written here."""
        self._now.set()

    async def _step(self, group: asyncio.TaskGroup) -> float:
        """Begin with what is due and has a seat; seconds until the next look."""
        free = SEATS - self._held.total()
        if free <= 0:
            return LOOK_S
        now_ms, found, next_ms = await self.store.claim(free, self._held, NAMESPACE_SEATS)
        for due in found:
            self._held[due.ns] += 1
            group.create_task(self._look(due, now_ms))
        if found:
            return 0.0
        return LOOK_S if next_ms is None else min(max((next_ms - now_ms) / 1000, LEAST_S), LOOK_S)

    async def _look(self, due: DueSchedule, now_ms: int) -> None:
        try:
            await self._round(due, now_ms)
        except (MeshError, msgspec.MsgspecError) as error:
            # Not decided: whoever looks when the claim is over does it again.
            _log.warning("schedule %s of %s: %s", due.name, due.ns, error)
        except Exception:  # noqa: BLE001 - the others are still due
            _log.exception("schedule %s of %s failed", due.name, due.ns)
        finally:
            self._held[due.ns] -= 1
            if not self._held[due.ns]:
                del self._held[due.ns]
            # It may be due again, or another have waited for its seat.
            self._now.set()

    async def _round(self, due: DueSchedule, now_ms: int) -> None:
        """One time that waits its turn and one of the clock; the rest comes when the others had theirs."""
        schedule = from_document(due.document)
        if due.queued is not None:
            at, way = due.queued
            await self._fire(due, schedule, Time(due.id, due.version, at, way, 0, 0))
        at = due.next_ms
        if not at or schedule.due(due.id, at) > now_ms:
            return
        oldest = now_ms - schedule.catch_up_ms
        if at < oldest:
            await self._miss(due, schedule, at, oldest)
            return
        following = schedule.clock.after(at)
        time = Time(due.id, due.version, at, CLOCK, following, schedule.due(due.id, following))
        await self._fire(due, schedule, time)

    async def _miss(self, due: DueSchedule, schedule: ScheduleBody, at: int, oldest: int) -> None:
        """No gateway was there for longer than the schedule is caught up with; the first time that still counts."""
        first = schedule.clock.after(oldest - 1)
        told = {"from": to_rfc3339(at), "until": to_rfc3339(oldest), "code": "catch_up_window"}
        time = Time(due.id, due.version, at, CLOCK, first, schedule.due(due.id, first))
        await self.store.pass_over(time, "missed", encode_json(told))

    async def _fire(self, due: DueSchedule, schedule: ScheduleBody, time: Time) -> None:
        try:
            order = order_of(schedule, due.ns, due.id, due.name, time.at)

            async def fire(start: Start, request: Request) -> Fired:
                return await self.store.fire(time, schedule.overlap, start, request, order.body)

            fired = await self._operations.start_scheduled(order, fire)
        except Refusal as refusal:
            if refusal.code == "checks_busy":
                # Said by who would have looked, not of the start: it is tried again.
                raise
            told = {"at": to_rfc3339(time.at), "status": refusal.status, "code": refusal.code, "detail": refusal.detail}
            await self.store.pass_over(time, "failed", encode_json(told))
            return
        if fired.canceled is not None:
            if fired.canceled.work is not None:
                self._take([fired.canceled.work])
            self._wake(fired.canceled.line)

    async def run(self) -> None:
        """Until it is canceled; what is being fired then is decided by the store whether or not its reply is read."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    pause_s = await self._step(group)
                except (MeshError, msgspec.MsgspecError) as error:
                    _log.warning("schedules: %s", error)
                    pause_s = LOOK_S
                except Exception:  # noqa: BLE001 - time must go on whatever one step ran into
                    _log.exception("schedules failed")
                    pause_s = LOOK_S
                if pause_s > 0:
                    await self._pause(pause_s)
                else:
                    await sleep(0)

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._now.wait()
        except TimeoutError:
            pass
        self._now.clear()
