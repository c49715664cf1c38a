"""Schedules in the store: every scheduled time is decided once, in one step, against the state of the last run."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from msgspec import UNSET

from gateway.schedules.clockwork import NAMESPACE_SEATS, SEATS, Clockwork
from mesh.clock import now_ms, sleep
from mesh.errors import NotFound, PreconditionFailed, TooMany
from mesh.machine import Kind, State
from mesh.store.layout import Request
from mesh.store.schedules import CLOCK, Fired, ScheduleStore, Time
from mesh.store.starting import NoEndpoint
from tests.model.fixtures import NS, Room

ID = "s-1"
STEP = 60_000
FIRST = 1_000 * STEP


class Stage:
    """One schedule, whose times are long over, and its clockwork."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.store = ScheduleStore(room.link)

    async def put(self, document: bytes = b"{}", **changed: Any) -> tuple[str, str, int]:
        given: dict[str, Any] = {"if_match": "", "clock": "c", "next_ms": FIRST, "due_ms": FIRST} | changed
        return await self.store.put(NS, "nightly", ID, document, **given)

    async def fire(
        self, number: int = 0, overlap: str = "skip", way: str = CLOCK, version: int = 1, **order: Any
    ) -> Fired:
        """Fire the time FIRST + `number` steps, as a gateway does."""
        at = FIRST + number * STEP
        fields: dict[str, Any] = {"delay_ms": 0} | order
        start = self.room.order(f"{ID}.{at}", **fields)
        time = Time(ID, version, at, way, at + STEP, at + STEP)
        return await self.store.fire(time, overlap, start, Request("work", "Svc", "op", None), b"")

    async def claim(self, count: int = 5, most: int = 99, **held: int) -> Any:
        return await self.store.claim(count, held, most)

    async def row(self) -> Any:
        return await self.store.read(NS, "nightly")

    async def begin(self, fired: Fired) -> None:
        """The agent has the run."""
        await self.room.claimed()
        await self.room.started(fired.operation_id)


@pytest.fixture
async def stage(room: Room) -> Stage:
    return Stage(room)


class TestDocuments:
    async def test_put_read_delete(self, stage: Stage) -> None:
        """P370: created, the same, replaced; versions guard; gone with all that belongs to it."""
        assert await stage.put() == ("created", ID, 1)
        assert await stage.put() == ("same", ID, 1)
        assert await stage.put(b'{"a":1}', if_match="1", next_ms=5) == ("replaced", ID, 2)
        row = await stage.row()
        assert (row.document, row.version, row.next_ms, row.paused) == (b'{"a":1}', 2, FIRST, False)
        for stale in ("1", "new"):
            with pytest.raises(PreconditionFailed):
                await stage.put(b"{}", if_match=stale)
        with pytest.raises(NotFound):
            await stage.store.read("other", "nightly")
        with pytest.raises(PreconditionFailed):
            await stage.store.delete(NS, "nightly", "1")
        await stage.store.delete(NS, "nightly", "2")
        assert await stage.store.names(NS) == {}
        assert await stage.claim() == (pytest.approx((await stage.claim())[0], abs=5_000), [], None)

    async def test_new_times_begin_anew(self, stage: Stage) -> None:
        """P370: other changes leave the next time where it is."""
        await stage.put()
        await stage.put(b'{"cron":1}', clock="d", next_ms=FIRST + 7, due_ms=FIRST + 7)
        assert (await stage.row()).next_ms == FIRST + 7


class TestFiring:
    async def test_a_time_runs_once(self, stage: Stage) -> None:
        """P371: whoever comes second with it finds it over; what was claimed and not fired is due again."""
        await stage.put()
        _, (due,), _ = await stage.claim()
        assert (due.id, due.next_ms, due.queued) == (ID, FIRST, None)
        assert (await stage.claim())[1] == []
        await stage.room.link.call("ZADD", stage.store.keys.schedules_due(NS), 1, ID)
        await stage.room.link.call("ZADD", stage.store.keys._key("schedule_turns"), 1, NS)
        assert len((await stage.claim())[1]) == 1
        fired = await stage.fire()
        assert fired.word == "started"
        assert (await stage.fire()).word == "moved"
        row = await stage.row()
        assert (row.next_ms, row.facts["started"], row.facts["last"]) == (FIRST + STEP, "1", fired.operation_id)
        assert await stage.store.runs(ID, None, 9) == [(fired.operation_id, FIRST)]
        assert [work.id for work in await stage.room.claimed()] == [fired.operation_id]

    async def test_changed_or_paused_meanwhile(self, stage: Stage) -> None:
        """P371: a claim of the document before decides nothing."""
        await stage.put()
        await stage.put(b'{"b":1}')
        assert (await stage.fire(version=1)).word == "moved"
        await stage.store.pause(NS, "nightly", paused=True)
        assert (await stage.fire(version=2)).word == "moved"
        assert (await stage.claim())[1] == []
        await stage.store.pause(NS, "nightly", paused=False, next_ms=FIRST, due_ms=FIRST)
        assert (await stage.fire(version=2)).word == "started"

    async def test_skip(self, stage: Stage) -> None:
        """P372: not while the last one goes on; counted."""
        await stage.put()
        first = await stage.fire()
        assert (await stage.fire(1)).word == "skipped"
        await stage.begin(first)
        assert (await stage.fire(2)).word == "skipped"
        await stage.room.succeed(first.operation_id)
        assert (await stage.fire(3)).word == "started"
        facts = (await stage.row()).facts
        assert (facts["started"], facts["skipped"], facts["skipped_at"]) == ("2", "2", str(FIRST + 2 * STEP))

    async def test_allow(self, stage: Stage) -> None:
        """P372."""
        await stage.put()
        assert [(await stage.fire(number, "allow")).word for number in range(3)] == ["started"] * 3

    async def test_queue(self, stage: Stage) -> None:
        """P372: one after the other, in order, none at the same time."""
        await stage.put()
        first = await stage.fire(0, "queue")
        assert [(await stage.fire(number, "queue")).word for number in (1, 2)] == ["queued"] * 2
        assert (await stage.fire(1, way="queue")).word == "busy"
        await stage.begin(first)
        await stage.room.succeed(first.operation_id)
        # A time that comes now does not pass those that wait.
        assert (await stage.fire(3, "queue")).word == "queued"
        second = await stage.fire(1, way="queue")
        assert second.word == "started"
        assert (await stage.fire(2, way="queue")).word == "busy"
        assert (await stage.row()).queued == 2

    @pytest.mark.parametrize("running", [False, True])
    async def test_cancel_previous(self, stage: Stage, running: bool) -> None:
        """P372: asked to end in the step that starts the next; what is out there is told by who fires."""
        await stage.put()
        first = await stage.fire(0, "cancel_previous")
        if running:
            await stage.begin(first)
        second = await stage.fire(1, "cancel_previous")
        assert second.word == "started"
        assert second.canceled is not None
        if running:
            assert second.canceled.work is not None
            assert (second.canceled.work.id, second.canceled.work.kind) == (first.operation_id, Kind.CANCEL)
        else:
            assert await stage.room.state(first.operation_id) is State.CANCELED

    async def test_a_refused_start_moves_nothing(self, stage: Stage) -> None:
        """P375: until it is said that the time is over; the run before is not canceled for it."""
        await stage.put()
        first = await stage.fire(0, "cancel_previous")
        with pytest.raises(NoEndpoint):
            await stage.fire(1, "cancel_previous", endpoint="e-none")
        assert await stage.room.state(first.operation_id) is State.SCHEDULED
        assert (await stage.row()).next_ms == FIRST + STEP
        at = FIRST + STEP
        await stage.store.pass_over(Time(ID, 1, at, CLOCK, at + STEP, at + STEP), "failed", b'{"code":"x"}')
        row = await stage.row()
        assert (row.next_ms, row.facts["failed"], row.facts["failed_told"]) == (at + STEP, "1", '{"code":"x"}')


class TestTurns:
    async def many(self, stage: Stage, **counts: int) -> None:
        for ns, count in counts.items():
            for number in range(count):
                given: dict[str, Any] = {"if_match": "", "clock": "c", "next_ms": FIRST, "due_ms": FIRST}
                await stage.store.put(ns, f"n{number}", f"{ns}-{number}", b"{}", **given)

    async def test_namespaces_take_turns(self, stage: Stage) -> None:
        """P379: what one namespace has more comes after what others have, and others come while it has still more."""
        await self.many(stage, red=12, blue=1, green=2)
        claims = [[due.ns for due in (await stage.claim(6))[1]] for _ in range(4)]
        assert sorted(claims[0]) == ["blue", "green", "green", "red", "red"]
        assert claims[1:] == [["red"] * 6, ["red"] * 4, []]

    async def test_nobody_is_passed_over_for_ever(self, stage: Stage) -> None:
        """P379: with fewer seats than namespaces, who was served waits behind who was not."""
        await self.many(stage, a=9, b=9, c=9)
        found = [due.ns for _ in range(3) for due in (await stage.claim(1))[1]]
        assert sorted(found) == ["a", "b", "c"]

    async def test_a_full_namespace(self, stage: Stage) -> None:
        """P379: one that has all its seats is not looked at, and is no reason to come again at once."""
        await self.many(stage, red=9)
        now, found, again = await stage.claim(5, 3, red=3)
        assert (found, again) == ([], None)
        await self.many(stage, blue=1)
        _, found, _ = await stage.claim(5, 3, red=2)
        assert sorted(due.ns for due in found) == ["blue", "red"]
        assert now > FIRST

    async def test_a_late_schedule_waits_behind_the_others(self, stage: Stage) -> None:
        """P379: one time of each and round, however many of one are over."""
        await self.many(stage, default=2)
        await stage.put()
        first = [due.id for due in (await stage.claim(1))[1]]
        at = FIRST
        await sleep(0.003)  # of one millisecond, neither is before the other
        await stage.store.pass_over(Time(first[0], 1, at, CLOCK, at + STEP, at + STEP), "failed", b"{}")
        rest = [due.id for _ in range(3) for due in (await stage.claim(1))[1]]
        assert rest[2] == first[0]
        assert len(set(rest)) == 3


class TestClockwork:
    async def test_what_is_slow_blocks_nobody(self, stage: Stage) -> None:
        """P379: a namespace whose starts hang (as checks may) holds its own seats and no more."""
        operation = b'{"endpoint":"work","service":"Svc","operation":"op"}'
        document = b'{"cron":"* * * * *","overlap":"allow","operation":' + operation + b"}"
        given: Any = {"if_match": "", "clock": "c", "next_ms": now_ms(), "due_ms": now_ms()}
        for number in range(SEATS + 1):
            await stage.store.put("red", f"n{number}", f"red-{number}", document, **given)
        hanging: list[str] = []

        class Slow:
            """Starts of red hang."""

            async def start_scheduled(self, order: Any, fire: Any) -> Fired:
                if order.namespace == "red":
                    hanging.append(order.key)
                    await asyncio.Event().wait()
                return await fire(stage.room.order(order.key, delay_ms=0), Request("work", "Svc", "op", None))

        clock = Clockwork(stage.room.link, cast("Any", Slow()), lambda _: None, lambda _: None)
        running = asyncio.create_task(clock.run())
        try:
            async with asyncio.timeout(10):
                while len(hanging) < NAMESPACE_SEATS:
                    await sleep(0.01)
                late: Any = given | {"next_ms": now_ms() - 2 * STEP, "due_ms": now_ms() - 2 * STEP}
                await stage.store.put(NS, "nightly", ID, document, **late)
                clock.wake()
                while int((await stage.row()).facts.get("started", 0)) < 2:
                    await sleep(0.01)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert len(hanging) == NAMESPACE_SEATS


class TestBackfill:
    async def test_times_wait_for_their_turn(self, stage: Stage) -> None:
        """P376: known once however often they are asked for; a time that ran is the operation of then."""
        await stage.put()
        ran = await stage.fire()
        times = [FIRST, FIRST + STEP]
        assert await stage.store.backfill(NS, "nightly", "allow", times) == 2
        assert await stage.store.backfill(NS, "nightly", "allow", times) == 2
        _, (due,), _ = await stage.claim()
        assert due.queued == (FIRST, "allow")
        again = await stage.fire(0, way="allow")
        assert (again.word, again.operation_id) == ("repeated", ran.operation_id)
        assert (await stage.fire(1, way="allow")).word == "started"
        assert [at for _, at in await stage.store.runs(ID, None, 9)] == [FIRST + STEP, FIRST]
        assert (await stage.row()).queued == 0

    async def test_bounds(self, stage: Stage) -> None:
        """P376, P370."""
        await stage.put()
        with pytest.raises(TooMany):
            await stage.store.backfill(NS, "nightly", "queue", list(range(1001)))
        with pytest.raises(NotFound):
            await stage.store.backfill("other", "nightly", "queue", [1])
        assert stage.room.order().delay_ms is UNSET
