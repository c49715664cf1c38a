"""Timers: kept by the store's clock, fired by any gateway's claim, never before their time."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, Kind, State
from mesh.store.layout import decode_outcome
from mesh.store.verbs import Completion, Task
from tests.model.fixtures import G1, G2, Room, eventually


@pytest.mark.parametrize("state", ["waiting", "in flight", "backing off", "started"])
async def test_schedule_to_close_ends_it_in_every_state(room: Room, state: str) -> None:
    """The one deadline of the whole operation."""
    one = await room.accepted(close_ms=1_000, blocked="no_instance" if state == "waiting" else "")
    if state == "backing off":
        await room.retry(one)
    if state == "started":
        await room.started(one)
    assert (await room.claim()).ended == []
    kept = await room.ended_by_timer(one)
    assert kept.state is State.TIMED_OUT
    assert kept.head.closed_at >= kept.head.close_by
    assert decode_outcome(kept.fields["r"]).reason == kept.events[-1].detail == "schedule_to_close"


async def test_schedule_to_start_ends_what_nobody_starts(room: Room) -> None:
    """Up to the 201 or the synchronous result (P101)."""
    one = await room.accepted(start_ms=1, blocked="no_instance")
    kept = await room.ended_by_timer(one)
    assert (kept.state, kept.events[-1].detail) == (State.TIMED_OUT, "schedule_to_start")


async def test_schedule_to_start_is_met_by_the_201(room: Room) -> None:
    """Once started it is over for good: an attempt lost later is sent again, whenever that is."""
    one = await room.accepted(start_ms=1_000)
    await room.started(one, beat_ms=1_050)
    works = await room.claimed()
    kept = await room.kept(one)
    assert [(work.id, work.head.attempt) for work in works] == [(one, 2)]
    assert kept.words == ["accepted", "dispatched", "started", "attempt_lost", "dispatched"]
    assert (await room.claim()).ended == []


async def test_start_to_close_begins_with_the_201(room: Room) -> None:
    """Before that it does not run."""
    one = await room.accepted(run_ms=1)
    assert (await room.claim()).ended == []
    await room.started(one)
    kept = await room.ended_by_timer(one)
    assert (kept.state, kept.events[-1].detail) == (State.TIMED_OUT, "start_to_close")


async def test_a_completion_wins_over_a_timer_that_is_due(room: Room) -> None:
    """The store's order decides (I19): what was recorded first stands, also when the deadline had passed."""
    one = await room.accepted(close_ms=1)
    assert (await room.succeed(one)).verdict is Completion.DONE
    assert (await room.claim()).ended == []
    assert await room.state(one) is State.SUCCEEDED


async def test_a_completion_after_the_timer_is_told_so(room: Room) -> None:
    """The loser gets a conflict."""
    one = await room.accepted(close_ms=1)
    await room.ended_by_timer(one)
    assert (await room.succeed(one)).verdict is Completion.OTHER


async def test_a_silent_agent_loses_its_lease(room: Room) -> None:
    """The heartbeat is over: the attempt is spent, the next one goes out at once."""
    one = await room.accepted()
    await room.started(one, beat_ms=1)
    (work,) = await room.claimed()
    assert (work.id, work.kind, work.head.attempt) == (one, Kind.START, 2)
    kept = await room.kept(one)
    assert kept.words[-2:] == ["attempt_lost", "dispatched"]
    assert kept.events[-2].detail == "heartbeat"


async def test_a_heartbeat_extends_the_lease(room: Room) -> None:
    """By the length it names, else by the length before; it names who wants to know of a cancel."""
    one = await room.accepted()
    await room.started(one, beat_ms=60_000)
    assert await room.store.heartbeat([Task(one, 1, 1, 90_000)]) == ["ok"]
    head = (await room.kept(one)).head
    assert head.beat_by >= head.created_at + 90_000
    assert await room.store.heartbeat([Task(one, 1, 1, 0)]) == ["ok"]
    assert (await room.kept(one)).head.beat_ms == 90_000
    await room.cancel(one)
    assert await room.store.heartbeat([Task(one, 1, 1, 0)]) == ["cancel"]


async def test_a_first_heartbeat_that_names_no_length_gets_a_default(room: Room) -> None:
    """It begins a lease (P103), and does not end it in the same moment."""
    one = await room.accepted()
    await room.started(one)
    assert (await room.kept(one)).head.beat_by == 0
    assert await room.store.heartbeat([Task(one, 1, 1, 0)]) == ["ok"]
    assert (await room.kept(one)).head.beat_ms == 30_000
    assert (await room.claim()).works == []


async def test_a_lease_may_begin_before_the_201(room: Room) -> None:
    """The agent heartbeats while its start request is still open; the 201 arms the lease."""
    one = await room.accepted()
    assert await room.store.heartbeat([Task(one, 1, 1, 60_000)]) == ["ok"]
    assert await room.state(one) is State.SCHEDULED
    await room.started(one)
    head = (await room.kept(one)).head
    assert (head.beat_ms, head.beat_by >= head.created_at + 60_000) == (60_000, True)


async def test_heartbeats_are_answered_one_by_one(room: Room) -> None:
    """Many in one call; each learns its own fate."""
    live, ended, waiting = await room.accepted(), await room.accepted(), await room.accepted()
    await room.succeed(ended)
    await room.retry(waiting)
    tasks = [Task(live, 1, 1, 9_000), Task(ended, 1, 1, 9_000), Task(waiting, 1, 1, 9_000), Task(live, 1, 7, 9_000),
             Task(live, 2, 1, 9_000), Task("00-nobody", 1, 1, 9_000)]  # fmt: skip
    assert await room.store.heartbeat(tasks) == ["ok", "ended", "lost", "lost", "lost", "unknown"]


async def test_the_lease_of_a_request_ends(room: Room) -> None:
    """Its gateway lives but never booked an answer: the attempt is spent, the next one goes out."""
    one = await room.accepted(lease_ms=1)
    (work,) = await room.claimed()
    assert (work.id, work.head.attempt) == (one, 2)
    assert (await room.kept(one)).events[2].detail == "request_lease"


async def test_another_gateway_does_not_fire_what_a_live_one_holds(room: Room) -> None:
    """Its holder looks after it."""
    one = await room.accepted(lease_ms=1, close_ms=60_000)
    await room.passed((await room.kept(one)).head.start_at)
    assert (await room.claim(G2)).works == []
    assert [work.id for work in (await room.claim(G1)).works] == [one]


async def test_a_claim_tells_when_to_look_next(room: Room) -> None:
    """The earliest timer that is left, its own or nobody's; none for work that only waits."""
    assert (await room.claim()).next_at_ms is None
    await room.accepted(blocked="no_instance")
    assert (await room.claim()).next_at_ms is None
    one = await room.accepted()
    claimed = await room.claim()
    assert claimed.next_at_ms == (await room.kept(one)).head.start_at
    assert (await room.claim(G2)).next_at_ms is None


async def test_a_claim_is_bounded(room: Room) -> None:
    """By the number of operations; the rest comes with the next call."""
    ids = {await room.accepted(lease_ms=1) for _ in range(5)}
    taken: list[str] = []

    async def look() -> bool:
        works = (await room.claim(count=2)).works
        assert len(works) <= 2
        taken.extend(work.id for work in works)
        return len(set(taken)) == 5

    await eventually(look)
    assert set(taken) == ids


async def test_the_token_of_an_earlier_attempt_is_not_used_to_stop_the_next(room: Room) -> None:
    """Attempt 1 was lost after its 201, and attempt 2 is in flight when the deadline passes.

    The cancel waits for attempt 2's own token instead of spending itself on attempt 1's.
    """
    one = await room.accepted(close_ms=1_000)
    await room.started(one, beat_ms=1)
    await room.claimed()
    kept = await room.ended_by_timer(one)
    assert (kept.state, kept.head.cancel) == (State.TIMED_OUT, Delivery.NONE)
    moved = await room.started(one, attempt=2)
    assert moved.work is not None
    assert (moved.work.kind, moved.work.extra) == (Kind.CANCEL, b"token-2")
