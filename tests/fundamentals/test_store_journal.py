"""Journals and streams: appended where the agent knows the end, once, in order, by the attempt that holds the work."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.events import EventKind
from mesh.machine import State
from mesh.store.durable import JOURNAL, STREAM
from mesh.store.functions import load_library
from mesh.store.layout import Line
from mesh.store.library import LIMITS, source
from mesh.store.verbs import Append, Completion, Step, Task, Wanted
from tests.model.fixtures import Room
from tests.model.sides import clocked

A, B, C = b'{"kind":"step","n":1}', b'{"kind":"step","n":2}', b'{"kind":"timer"}'


async def running(room: Room, **fields: Any) -> str:
    """An operation with a lease of a minute."""
    one = await room.accepted(**fields)
    await room.started(one, beat_ms=60_000)
    return one


async def append(room: Room, one: str, at: int, *bodies: bytes, attempt: int = 1, into: str = JOURNAL) -> Step:
    _, (step,) = await room.store.append(into, [Append(one, 1, attempt, at, bodies)])
    return step


async def bodies(room: Room, one: str, into: str = JOURNAL) -> list[bytes]:
    return [line.body for line in (await room.store.lines(one, into, 0, 1_000)).lines]


async def test_entries_are_kept_as_they_are(room: Room) -> None:
    """Byte for byte, in order; the record says how many."""
    one = await running(room)
    assert await append(room, one, 0, A, B) == Step("ok", 2)
    assert await append(room, one, 2, C) == Step("ok", 3)
    assert await bodies(room, one) == [A, B, C]
    record = await room.store.read(one)
    assert record is not None
    assert (record.journal, record.head.journal) == (3, 1)


async def test_a_repeat_adds_nothing(room: Room) -> None:
    """The reply was lost: equal entries of the same attempt at the same place are ok, all else has grown meanwhile."""
    one = await running(room)
    await append(room, one, 0, A)
    await append(room, one, 1, B)
    assert await append(room, one, 0, A) == Step("ok", 1)
    assert await append(room, one, 0, A, B) == Step("ok", 2)
    assert await append(room, one, 0, B) == Step("grown", 2)
    assert await append(room, one, 1, B, C) == Step("grown", 2)
    assert await append(room, one, 9, C) == Step("grown", 2)
    assert await bodies(room, one) == [A, B]


async def test_the_same_entry_of_another_attempt_is_no_repeat(room: Room) -> None:
    """Attempt 2 did the step again without having read what attempt 1 did."""
    one = await room.accepted()
    await room.started(one, beat_ms=1)
    await append(room, one, 0, A)
    (work,) = await room.claimed()
    assert (work.head.attempt, work.journal) == (2, 1)
    await room.started(one, attempt=2, beat_ms=60_000)
    assert await append(room, one, 0, A, attempt=2) == Step("grown", 1)


async def test_many_attempts_in_one_step(room: Room) -> None:
    """Each learns its own fate, and those that are refused keep none of the others."""
    first, second, ended = await running(room), await running(room), await running(room)
    await room.succeed(ended)
    tasks = [Append(first, 1, 1, 0, [A, B]), Append(ended, 1, 1, 0, [A]), Append("00-nobody", 1, 1, 0, [A]),
             Append(first, 1, 7, 0, [A]), Append(second, 1, 1, 0, [C]), Append(first, 1, 1, 2, [C])]  # fmt: skip
    now, steps = await room.store.append(JOURNAL, tasks)
    assert now > 0
    assert [(step.status, step.length) for step in steps] == [
        ("ok", 2), ("ended", 0), ("unknown", 0), ("lost", 0), ("ok", 1), ("ok", 3)
    ]  # fmt: skip
    assert (await bodies(room, first), await bodies(room, second)) == ([A, B, C], [C])


async def test_it_tells_of_a_cancel(room: Room) -> None:
    """With every answer."""
    one = await running(room)
    assert (await append(room, one, 0, A)).cancel is False
    await room.cancel(one)
    assert (await append(room, one, 1, B)) == Step("ok", 2, cancel=True)


async def test_it_renews_the_lease_when_a_third_is_used(room: Room) -> None:
    """Most steps leave the record alone; the lease does not end under an agent that works."""
    one = await room.accepted()
    await room.started(one, beat_ms=6_000)
    before = (await room.kept(one)).head
    await append(room, one, 0, A)
    assert (await room.kept(one)).head.beat_by == before.beat_by
    await room.passed(before.beat_by - 3_900)
    await append(room, one, 1, B)
    assert (await room.kept(one)).head.beat_by > before.beat_by


async def test_a_superseded_attempt_is_refused_and_shown_once(room: Room) -> None:
    """Fenced by attempt, whatever it tries; its outcome too, for work with a journal is never taken from a late one."""
    one = await room.accepted(lease_ms=1)
    await append(room, one, 0, A)
    (work,) = await room.claimed()
    assert (work.id, work.head.attempt) == (one, 2)
    for _ in range(2):
        assert (await append(room, one, 1, B)).status == "lost"
    assert (await room.succeed(one, attempt=1)).verdict is Completion.LEASE_LOST
    kept = await room.kept(one)
    shown = [(event.attempt, event.detail) for event in kept.events if event.code == EventKind.REFUSED]
    assert shown == [(1, "journal")]
    assert (await room.succeed(one, attempt=2)).verdict is Completion.DONE
    assert (await room.succeed(one, attempt=1)).verdict is Completion.SAME
    assert (await room.fail(one, attempt=1)).verdict is Completion.OTHER


@pytest.mark.parametrize("into", [JOURNAL, STREAM])
async def test_it_is_bounded(room: Room, monkeypatch: pytest.MonkeyPatch, into: str) -> None:
    """In number and bytes; what is full takes nothing more, and the operation can still end."""
    one = await running(room)
    limit = LIMITS["journal_entries" if into == JOURNAL else "stream_chunks"]
    key = room.store.keys.journal(one) if into == JOURNAL else room.store.keys.stream(one)
    await append(room, one, 0, A, into=into)
    await room.link.call("EVAL", "for i = 2, ARGV[1] do redis.call('RPUSH', KEYS[1], ARGV[2]) end", 1, key, limit - 1,
                         bytes(9) + b"\0\0\0\1\0\0\0\1")  # fmt: skip
    assert await append(room, one, limit - 1, A, B, into=into) == Step("full", limit - 1)
    assert await append(room, one, limit - 1, A, into=into) == Step("ok", limit)
    assert await append(room, one, limit, A, into=into) == Step("full", limit)
    assert (await room.succeed(one)).verdict is Completion.DONE
    await room.link.call("FLUSHALL")
    await room.open()


async def test_bytes_are_counted(room: Room) -> None:
    """All bodies together."""
    one = await running(room)
    half = b'"' + b"x" * (LIMITS["journal_bytes"] // 2) + b'"'
    assert (await append(room, one, 0, half)).status == "ok"
    assert (await append(room, one, 1, half)).status == "full"
    assert (await append(room, one, 1, A)).status == "ok"


async def test_pages_are_bounded_and_never_empty(room: Room) -> None:
    """In number and bytes, over all lists of one call."""
    one, two = await running(room), await running(room)
    large = b'"' + b"x" * 700_000 + b'"'
    for at in range(3):
        await append(room, one, at, large)
    await append(room, two, 0, A, B)
    page = await room.store.lines(one, JOURNAL, 0, 1_000)
    assert ([len(line.body) for line in page.lines], page.journal) == ([len(large)] * 2, 3)
    assert [line.body for line in (await room.store.lines(two, JOURNAL, 1, 1)).lines] == [B]
    assert (await room.store.lines(two, JOURNAL, 2, 10)).lines == []
    _, pages = await room.store.pages(JOURNAL, [Wanted(one, 1, 1, 0, 1_000), Wanted(two, 1, 1, 0, 1_000)])
    assert [(page.status, len(page.lines), page.journal) for page in pages] == [("ok", 2, 3), ("ok", 0, 2)]


async def test_a_journal_is_read_by_the_attempt_that_holds_the_work(room: Room) -> None:
    """Others learn that they do not."""
    one, ended = await running(room), await running(room)
    await append(room, one, 0, A)
    await room.succeed(ended)
    wanted = [Wanted(one, 1, 1, 0, 9), Wanted(one, 1, 2, 0, 9), Wanted(one, 2, 1, 0, 9), Wanted(ended, 1, 1, 0, 9),
              Wanted("00-nobody", 1, 1, 0, 9)]  # fmt: skip
    _, pages = await room.store.pages(JOURNAL, wanted)
    assert [(page.status, len(page.lines)) for page in pages] == [
        ("ok", 1), ("lost", 0), ("lost", 0), ("ended", 0), ("unknown", 0)
    ]  # fmt: skip


async def test_streams_are_lists_of_their_own(room: Room) -> None:
    """Own numbers; they do not stand in the history."""
    one = await running(room)
    assert await append(room, one, 0, b'"a"', b'"b"', into=STREAM) == Step("ok", 2)
    assert await append(room, one, 0, A) == Step("ok", 1)
    page = await room.store.lines(one, STREAM, 1, 10)
    assert ([line.body for line in page.lines], page.stream, page.journal) == ([b'"b"'], 2, 1)


async def test_entries_and_events_have_one_order(room: Room) -> None:
    """An event names how many entries were there before it, and none is stamped before what it follows."""
    one = await running(room)
    await append(room, one, 0, A, B)
    await room.cancel(one)
    await append(room, one, 2, C)
    await room.succeed(one)
    kept = await room.kept(one)
    assert [(word, event.journal) for word, event in zip(kept.words, kept.events, strict=True)] == [
        ("accepted", 0), ("dispatched", 0), ("started", 0), ("cancel_requested", 2), ("succeeded", 3)
    ]  # fmt: skip


async def test_it_goes_with_its_operation(room: Room) -> None:
    """After the retention nothing is left."""
    one = await running(room, retention_ms=1)
    await append(room, one, 0, A)
    await append(room, one, 0, b"1", into=STREAM)
    await room.succeed(one)
    await room.passed((await room.kept(one)).head.closed_at + 2)
    await room.claim()
    snapshot = await room.snapshot()
    assert (snapshot.operations, snapshot.journals, snapshot.streams) == ({}, {}, {})


async def test_a_heartbeat_may_bring_details(room: Room) -> None:
    """Shown until the next that has some."""
    one, two = await running(room), await running(room)
    tasks = [Task(one, 1, 1, 0), Task(two, 1, 1, 0, b'{"page":3}'), Task(one, 1, 1, 0, b"7")]
    assert await room.store.heartbeat(tasks) == ["ok", "ok", "ok"]
    assert await room.store.heartbeat(tasks[:1]) == ["ok"]
    records = await room.store.read_many([one, two])
    beats = [record.beat for record in records if record is not None]
    assert [beat.body for beat in beats if isinstance(beat, Line)] == [b"7", b'{"page":3}']


async def test_an_entry_before_the_201_is_booked(room: Room) -> None:
    """The agent works on while its answer is on its way."""
    one = await room.accepted()
    assert await append(room, one, 0, A) == Step("ok", 1)
    assert await room.state(one) is State.SCHEDULED
    await room.started(one, beat_ms=60_000)
    assert await append(room, one, 1, B) == Step("ok", 2)


async def test_a_clock_that_goes_back_turns_no_history_round(room: Room) -> None:
    """Entries and events are stamped no earlier than what stands before them."""
    now = (await room.store.append(JOURNAL, []))[0]
    await room.link.call("FUNCTION", "LOAD", "REPLACE", clocked(source()))
    try:
        await set_clock(room, now)
        one = await running(room)
        await set_clock(room, now + 5_000)
        await append(room, one, 0, A)
        await set_clock(room, now + 1_000)
        await append(room, one, 1, B)
        await room.cancel(one)
        await set_clock(room, now + 2_000)
        await append(room, one, 2, C)
        lines = (await room.store.lines(one, JOURNAL, 0, 9)).lines
        assert [line.after_ms for line in lines] == [5_000, 5_000, 5_000]
        assert (await room.kept(one)).events[-1].after_ms == 5_000
    finally:
        await load_library(room.link.call)


async def set_clock(room: Room, at_ms: int) -> None:
    await room.link.call("HSET", "clock", "s", at_ms // 1000, "us", at_ms % 1000 * 1000)
