"""Suspension: the attempt is over and holds nothing; a time, a child's end or a cancel brings the next one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.machine import Delivery, Event, Kind, State
from mesh.store.durable import JOURNAL
from mesh.store.layout import DataRef, Outcome, decode_outcome
from mesh.store.library import LIMITS, source
from mesh.store.starting import OtherParent, ParentLost
from mesh.store.store import pack
from mesh.store.verbs import LOOK, Accepted, Append, ChildStart, Completion, Replayed, Step, Suspend
from tests.fundamentals.test_store_journal import A, B, append, running
from tests.model.fixtures import CANCELED, ENDPOINT, FAILURE, G1, G2, RESULT, Room, eventually


async def suspend(room: Room, one: str, at: int = 0, attempt: int = 1, **fields: int) -> Step:
    _, (step,) = await room.store.suspend([Suspend(one, 1, attempt, at, **fields)])
    return step


async def child(
    room: Room, parent: str, key: str = "call#1", *, attempt: int = 1, close: int = 1, **fields: Any
) -> str:
    """Start a child of an attempt; its id."""
    order = ChildStart(
        **msgspec.structs.asdict(room.order(f"{parent}/{key}", **fields)),
        parent=parent, parent_run=1, parent_attempt=attempt, parent_key=key, parent_close=close,
    )  # fmt: skip
    reply = await room.start(order)
    assert isinstance(reply, Accepted | Replayed)
    return order.id if isinstance(reply, Accepted) else reply.id


class TestSuspended:
    async def test_it_holds_nothing(self, room: Room) -> None:
        """No lease, no slot, no clock but the deadline of the whole."""
        await room.endpoint(max_concurrency=1)
        one = await running(room, run_ms=60_000)
        waiting = await room.accepted()
        assert await suspend(room, one) == Step("ok", 0, line=ENDPOINT)
        head = (await room.kept(one)).head
        assert (head.state, head.start, head.start_at) == (State.STARTED, Delivery.DUE, 0)
        assert (head.slot, head.beat_by, head.finish_by, head.owner) == (0, 0, 0, "")
        works, _ = await room.store.unblock(ENDPOINT, G1, 10)
        assert [work.id for work in works] == [waiting]
        assert (await room.claim()).works == []

    async def test_a_time_wakes_it(self, room: Room) -> None:
        """Not before; the next attempt knows of the journal."""
        one = await running(room)
        await append(room, one, 0, A, B)
        assert (await suspend(room, one, 2, wake_in_ms=1_000)).status == "ok"
        assert (await room.claim()).works == []
        (work,) = await room.claimed()
        kept = await room.kept(one)
        assert (work.id, work.kind, work.head.attempt, work.journal) == (one, Kind.START, 2, 2)
        assert (kept.head.resumes, kept.head.suspended) == (1, 0)
        assert kept.words[-2:] == ["suspended", "dispatched"]
        assert kept.events[-1].after_ms - kept.events[-2].after_ms >= 1_000

    async def test_by_the_stores_clock(self, room: Room) -> None:
        """`wake_at_ms` is exact, whatever the agent's clock says."""
        one = await running(room)
        at_ms = (await room.kept(one)).head.created_at + 90_000
        await suspend(room, one, wake_at_ms=at_ms)
        assert (await room.claim()).next_at_ms == at_ms
        assert (await room.kept(one)).events[-1].detail == at_ms

    async def test_a_repeat_is_ok(self, room: Room) -> None:
        """The reply was lost; once it was dispatched again, the attempt is lost."""
        one = await running(room)
        assert (await suspend(room, one, wake_in_ms=1)).status == "ok"
        assert (await suspend(room, one, wake_in_ms=1)).status == "ok"
        await room.claimed()
        assert (await suspend(room, one, wake_in_ms=1)).status == "lost"
        assert "refused" in (await room.kept(one)).words

    async def test_nothing_is_slept_through(self, room: Room) -> None:
        """An entry that the agent does not know, or a cancel that it was not told of: it is to look again."""
        one = await running(room)
        await append(room, one, 0, A)
        assert await suspend(room, one, 0) == Step("grown", 1)
        await room.cancel(one)
        assert await suspend(room, one, 1) == Step("grown", 1, cancel=True)
        assert (await suspend(room, one, 1, cancel=1, wake_in_ms=60_000)).status == "ok"

    async def test_a_late_201_does_not_start_it_again(self, room: Room) -> None:
        """The agent suspended before its 201 was booked, and was woken into a line meanwhile."""
        one = await room.accepted()
        assert (await suspend(room, one, wake_in_ms=1)).status == "ok"
        assert (await room.kept(one)).words == ["accepted", "dispatched", "started", "suspended"]
        assert (await room.started(one, beat_ms=1_000)).verdict == "same"
        await room.catalog.endpoint_pause("work", "default", paused=True)

        async def blocked() -> bool:
            await room.claim()
            return (await room.kept(one)).head.blocked == "paused"

        await eventually(blocked)
        assert (await room.started(one, beat_ms=1_000)).verdict == "same"
        assert await room.state(one) is State.SCHEDULED

    async def test_going_on_counts_against_nothing(self, room: Room) -> None:
        """`attempts_max` is for attempts that failed, also when nobody could be reached for a resumption."""
        one = await running(room, attempts_max=1)
        for attempt in range(1, 8, 2):
            assert (await suspend(room, one, attempt=attempt, wake_in_ms=1)).status == "ok"
            await room.claimed()
            await room.store.release(one, 1, attempt + 1, "unreachable", session=G1)
            await room.store.unblock(ENDPOINT, G1, 10)
            await room.started(one, attempt=attempt + 2, beat_ms=60_000)
        head = (await room.kept(one)).head
        assert (head.attempt, head.resumes) == (9, 8)
        assert (await room.succeed(one, attempt=9)).verdict is Completion.DONE

    async def test_the_deadline_of_the_whole_holds(self, room: Room) -> None:
        """There is nobody to tell to stop."""
        one = await running(room, close_ms=500)
        await suspend(room, one)
        kept = await room.ended_by_timer(one)
        assert (kept.state, kept.head.cancel) == (State.TIMED_OUT, Delivery.NONE)

    async def test_it_needs_its_gateway_no_more(self, room: Room) -> None:
        """Whoever claims first goes on with it."""
        one = await running(room)
        await suspend(room, one, wake_in_ms=1)
        await room.died(G1)
        await room.store.beat(G2)
        (work,) = await room.claimed(session=G2)
        assert (work.id, work.head.owner) == (one, G2)


class TestCanceled:
    async def test_a_suspended_one_is_woken(self, room: Room) -> None:
        """Its handler winds it up: it is dispatched, and told with the start."""
        one = await running(room)
        await suspend(room, one)
        moved = await room.cancel(one)
        assert (moved.verdict, moved.line, moved.work) == ("requested", LOOK, None)
        (work,) = await room.claimed()
        assert (work.kind, work.head.cancel_asked) == (Kind.START, 1)
        await room.started(one, attempt=2, beat_ms=60_000)
        assert (await room.report_canceled(one, attempt=2)).verdict is Completion.DONE

    @pytest.mark.parametrize("how", ["backing off", "lost", "in line"])
    async def test_what_keeps_a_journal_is_wound_up_by_its_handler(self, room: Room, how: str) -> None:
        """Nothing is out there now, but what was done may have to be undone."""
        one = await room.accepted(lease_ms=1 if how == "lost" else 35_000)
        await append(room, one, 0, A)
        if how == "backing off":
            await room.retry(one)
        elif how == "in line":
            await room.store.release(one, 1, 1, "unreachable", session=G1)
        else:
            await room.claimed()
            await room.store.leave(G1)
            await room.store.beat(G1, join=True)
        assert (await room.cancel(one)).verdict == "requested"
        works = (await room.store.unblock(ENDPOINT, G1, 10))[0] if how == "in line" else await room.claimed()
        assert [(work.id, work.head.cancel_asked) for work in works] == [(one, 1)]

    async def test_without_an_endpoint_nobody_can(self, room: Room) -> None:
        """Then it ends at once."""
        one = await room.accepted()
        await append(room, one, 0, A)
        await room.store.release(one, 1, 1, "unreachable", session=G1)
        await room.catalog.endpoint_delete("work", "default", "")
        await room.store.unblock(ENDPOINT, G1, 10, "endpoint_deleted")
        assert (await room.cancel(one)).verdict == "canceled"

    async def test_the_next_attempt_is_told_again(self, room: Room) -> None:
        """Attempt 1 was told and died; the start of attempt 2 says so itself, and its cancel is not owed twice."""
        one = await room.accepted()
        await room.started(one, beat_ms=1)
        await append(room, one, 0, A)
        moved = await room.cancel(one)
        assert moved.work is not None
        works = [work for work in await room.claimed() if work.kind is Kind.START]
        assert (works[0].head.attempt, works[0].head.cancel_asked, works[0].head.cancel) == (2, 1, Delivery.DROPPED)


    async def test_what_nothing_would_wake_ends(self, room: Room) -> None:
        """P234: it knows that its end is wanted, and waits for neither a time nor a child that lives."""
        one = await running(room, callback=1)
        kept, over = [await child(room, one, key, close=0) for key in ("kept#1", "over#1")]
        await room.succeed(over)
        await room.cancel(one)
        assert (await suspend(room, one, 1, cancel=1)).status == "ok", "a child may still wake it"
        await room.succeed(kept)
        (work,) = [work for work in await room.claimed() if work.id == one]
        assert (work.kind, work.journal) == (Kind.START, 2)
        await room.started(one, attempt=2, beat_ms=60_000)
        assert (await suspend(room, one, 2, attempt=2, cancel=1, wake_in_ms=60_000)).status == "ok", "so may a time"
        two = await running(room, callback=1)
        await room.cancel(two)
        assert await suspend(room, two, cancel=1) == Step("ended", 0, cancel=True, line=LOOK)
        kept_two = await room.kept(two)
        assert (kept_two.state, kept_two.words[-1]) == (State.CANCELED, "canceled")
        assert [work.kind for work in (await room.claim()).works if work.id == two] == [Kind.CALLBACK]
        assert (await suspend(room, two, cancel=1)).status == "ended"


class TestChildren:
    async def test_its_end_wakes_its_parent(self, room: Room) -> None:
        """In the same step, with the outcome; the reply says to look at once."""
        one = await running(room)
        two = await child(room, one, "lint#1")
        await suspend(room, one)
        done = await room.succeed(two)
        assert done.line == LOOK
        (work,) = await room.claimed()
        assert (work.id, work.journal) == (one, 1)
        (line,) = (await room.store.lines(one, JOURNAL, 0, 10)).lines
        assert (line.child, line.body, line.attempt) == ((State.SUCCEEDED, two, "lint#1"), RESULT, 1)

    @pytest.mark.parametrize(
        ("event", "outcome", "state"),
        [(Event.FAIL, FAILURE, State.FAILED), (Event.CANCEL, CANCELED, State.CANCELED)],
    )
    async def test_however_it_ends(self, room: Room, event: Event, outcome: bytes, state: State) -> None:
        """Failures and cancellations too; a repeat of the outcome tells nobody twice."""
        one = await running(room)
        two = await child(room, one)
        for _ in range(2):
            await room.store.complete(two, 1, 1, event, outcome, session=G1)
        (line,) = (await room.store.lines(one, JOURNAL, 0, 10)).lines
        assert (line.child, line.body) == ((state, two, "call#1"), outcome)

    async def test_also_by_time_and_before_it_ran(self, room: Room) -> None:
        """What the mesh itself ends has an outcome as well."""
        one = await running(room)
        late = await child(room, one, "late#1", close_ms=1)
        idle = await child(room, one, "idle#1", attempts_max=1)
        await room.retry(idle)
        await room.ended_by_timer(late)
        lines = (await room.store.lines(one, JOURNAL, 0, 10)).lines
        assert [(line.child[2], decode_outcome(line.body).reason) for line in lines if line.child] == [
            ("idle#1", "attempts_exhausted"), ("late#1", "schedule_to_close")
        ]  # fmt: skip

    async def test_a_running_parent_sees_it_grow(self, room: Room) -> None:
        """Its next step tells it to read on; suspending at the old length would sleep through it."""
        one = await running(room)
        two = await child(room, one)
        await append(room, one, 0, A)
        await room.succeed(two)
        assert await append(room, one, 1, B) == Step("grown", 2)
        assert (await suspend(room, one, 1)).status == "grown"
        assert await append(room, one, 2, B) == Step("ok", 3)

    async def test_a_large_outcome_stays_with_the_child(self, room: Room) -> None:
        """The journal names it, and whoever reads finds it there."""
        one = await running(room)
        two = await child(room, one)
        large = RESULT + b"x" * (2 << 20)
        await room.succeed(two, outcome=large)
        (line,) = (await room.store.lines(one, JOURNAL, 0, 10)).lines
        assert (line.child, line.body) == ((State.SUCCEEDED, two, "call#1"), b"")
        assert await room.store.outcome(two) == large

    async def test_a_large_outcome_is_kept_until_its_parent_has_ended(
        self, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P235: past its own retention too, for the parent has nothing but its name. A small one goes as ever.

        P440: so is one that only refers to its result, which is deleted with the record.
        """
        monkeypatch.setitem(LIMITS, "unread_ms", 1)
        await room.link.call("FUNCTION", "LOAD", "REPLACE", source())
        one = await running(room)
        small, large, kept, huge = [await child(room, one, f"c#{n}", retention_ms=1) for n in range(4)]
        await suspend(room, one)
        await room.succeed(small)
        await room.succeed(large, outcome=pack(Outcome("result", "", "application/json", b"1" * (2 << 20))))
        refers = pack(Outcome("result", links=["<a>"], data=DataRef("file", "0" * 64, 3)))
        await room.succeed(kept, outcome=refers)
        # A number whose last byte is that of msgpack's nil, and one of nine bytes.
        await room.succeed(huge, outcome=pack(Outcome("result", data=DataRef("s3", "a" * 64, (1 << 40) + 0xC0))))
        (line, _) = (await room.store.lines(one, JOURNAL, 2, 10)).lines
        assert (line.child, line.body) == ((State.SUCCEEDED, kept, "c#2"), refers)

        async def gone(which: str) -> bool:
            await room.claim()
            return await room.store.read(which) is None

        await eventually(lambda: gone(small))
        for _ in range(5):
            for each in (large, kept, huge):
                assert not await gone(each)
        await room.succeed(one, attempt=2)
        for each in (large, kept, huge):
            await eventually(lambda one=each: gone(one))

    async def test_a_key_of_an_operation_that_this_call_did_not_start(self, room: Room) -> None:
        """P235: its end would be told to another, and this call would wait for ever."""
        one, other = await running(room), await running(room)
        plain = await room.accepted("mine")
        shared = await child(room, other, "theirs#1")
        for key, parent, name, known in (
            ("mine", one, "a#1", plain),
            (f"{other}/theirs#1", one, "theirs#1", shared),
            (f"{other}/theirs#1", other, "theirs#2", shared),
        ):
            order = ChildStart(
                **msgspec.structs.asdict(room.order(key)),
                parent=parent, parent_run=1, parent_attempt=1, parent_key=name, parent_close=1,
            )  # fmt: skip
            with pytest.raises(OtherParent, match=known):
                await room.start(order)
        assert (await room.kept(one)).head.children == 0

    async def test_the_same_call_is_the_same_child(self, room: Room) -> None:
        """Attempt 2 makes the calls of attempt 1 again."""
        one = await running(room)
        two = await child(room, one)
        await suspend(room, one, wake_in_ms=1)
        await room.claimed()
        await room.started(one, attempt=2, beat_ms=60_000)
        assert await child(room, one, attempt=2) == two

    async def test_only_the_attempt_that_holds_the_work_starts_some(self, room: Room) -> None:
        """A zombie starts nothing, and claims no key by trying."""
        one = await room.accepted()
        await room.started(one, beat_ms=1)
        await room.claimed()
        with pytest.raises(ParentLost):
            await child(room, one)
        assert (await room.kept(one)).words[-1] == "refused"
        assert isinstance(await child(room, one, attempt=2), str)
        await room.succeed(one, attempt=2)
        with pytest.raises(ParentLost):
            await child(room, one, "other#1", attempt=2)

    async def test_it_has_no_more_time_than_its_parent(self, room: Room) -> None:
        """The deadline of the whole is the parent's, if that is earlier."""
        one = await running(room, close_ms=60_000)
        by = (await room.kept(one)).head.close_by
        for key, close_ms in (("a#1", 0), ("b#1", 90_000)):
            assert (await room.kept(await child(room, one, key, close_ms=close_ms))).head.close_by == by
        assert (await room.kept(await child(room, one, "c#1", close_ms=1_000))).head.close_by < by

    async def test_what_its_parent_leaves_is_canceled(self, room: Room) -> None:
        """Unless it is to be kept; what never ran ends at once, what runs is told, what ended stays."""
        one = await running(room)
        idle, out, kept, over = [await child(room, one, f"c#{n}", close=int(n != 2)) for n in range(4)]
        await room.store.release(idle, 1, 1, "unreachable", session=G1)
        for two in (out, kept):
            await room.started(two)
        await room.succeed(over)
        await room.succeed(one)
        works = await room.claimed()
        assert [(work.id, work.kind) for work in works] == [(out, Kind.CANCEL)]
        snapshot = await room.snapshot()
        states = {two: snapshot.operations[two].state for two in (idle, out, kept, over)}
        assert states == {idle: State.CANCELED, out: State.STARTED, kept: State.STARTED, over: State.SUCCEEDED}
        assert (snapshot.operations[kept].head.cancel_asked, snapshot.unfinished) == (0, {})

    async def test_many_are_told_some_at_a_time(self, room: Room) -> None:
        """A claim does a bounded part of it."""
        one = await running(room)
        for number in range(100):
            await child(room, one, f"c#{number}")
        await room.succeed(one)

        async def told() -> bool:
            await room.claim()
            return not (await room.snapshot()).unfinished

        await room.claim()
        assert 0 < len((await room.snapshot()).unfinished[one]) < 100
        await eventually(told)
        head = (await room.kept(one)).head
        assert head.children == 3

    async def test_they_are_listed_with_their_parent(self, room: Room) -> None:
        """Newest first, as long as they are kept."""
        one = await running(room)
        children = [await child(room, one, f"c#{number}") for number in range(3)]
        rows = await room.store.page("", before=None, since_ms=0, until_ms=1 << 53, limit=2, parent=one)
        assert len(rows) == 2
        more = await room.store.page(
            "", before=(rows[-1][1], rows[-1][0]), since_ms=0, until_ms=1 << 53, limit=9, parent=one
        )
        assert {row[0] for row in rows + more} == set(children)

    async def test_a_woken_parent_and_a_step_that_is_late(self, room: Room) -> None:
        """The attempt that suspended is over, whoever still writes for it."""
        one = await running(room)
        two = await child(room, one)
        await suspend(room, one)
        _, (step,) = await room.store.append(JOURNAL, [Append(one, 1, 1, 0, [A])])
        assert step.status == "lost"
        assert "refused" not in (await room.kept(one)).words
        await room.succeed(two)
        (work,) = await room.claimed()
        assert work.head.attempt == 2
