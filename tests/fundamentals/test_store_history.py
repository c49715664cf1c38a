"""What stays: the history, pages of operations, and that nothing stays after retention."""

from __future__ import annotations

import pytest
from msgspec.msgpack import Decoder

from mesh.machine import Kind, State
from mesh.store.functions import load_library
from mesh.store.layout import HEAD, HEAD_DEFAULTS, Head, encode
from mesh.store.library import LIMITS, source
from mesh.store.verbs import Accepted, Completion
from tests.model.fixtures import ENDPOINT, G1, NS, Room, eventually
from tests.model.snapshot import take


async def purged(room: Room, one: str) -> None:
    """Claim until the operation is gone, bounded."""

    async def gone() -> bool:
        await room.claim()
        return await room.store.read(one) is None

    await eventually(gone)


async def test_the_history_is_a_gapless_walk_through_the_machine(room: Room) -> None:
    """1..n, stamps never step back, each step a legal move (I25); the room's checker walks it for every operation."""
    one = await room.accepted(callback=1)
    await room.store.release(one, 1, 1, "unreachable")
    await room.store.unblock(ENDPOINT, G1, 1)
    await room.retry(one, delay_ms=1)
    await room.claimed()
    await room.started(one, attempt=2)
    await room.cancel(one)
    await room.store.delivered(one, 1, Kind.CANCEL)
    await room.succeed(one, attempt=2)
    await room.store.delivered(one, 1, Kind.CALLBACK)
    kept = await room.kept(one)
    assert kept.words == [
        "accepted", "dispatched", "blocked", "dispatched", "attempt_failed", "dispatched", "started",
        "cancel_requested", "cancel_delivered", "succeeded", "callback_delivered",
    ]  # fmt: skip
    assert [event.attempt for event in kept.events] == [0, 1, 0, 1, 1, 2, 2, 2, 2, 2, 2]


async def test_stamps_do_not_follow_a_clock_that_steps_back(room: Room) -> None:
    """The operation was accepted by a clock that was an hour ahead: later events get its last stamp, never less."""
    one = await room.accepted()
    key = room.store.keys.operation(one)
    head = Decoder(Head, strict=False).decode(await room.link.call("HGET", key, "h"))
    head.created_at += 3_600_000  # and with it what is counted from there
    await room.link.call("HSET", key, "h", encode(head))
    await room.link.call("ZADD", room.store.keys.index(NS), head.created_at, one)
    await room.started(one)
    await room.succeed(one)
    assert [event.after_ms for event in (await room.kept(one)).events] == [0, 0, 0, 0]


async def test_a_history_is_bounded_and_keeps_its_end(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that is relabelled for ever stops recording that; how it ended is recorded all the same."""
    with monkeypatch.context() as few:
        few.setitem(LIMITS, "events", 8)
        await room.link.call("FUNCTION", "LOAD", "REPLACE", source())
    one = await room.accepted(blocked="no_instance")
    for reason in ("breaker", "unreachable") * 4:
        await room.store.unblock(ENDPOINT, G1, 1, reason)
    assert (await room.kept(one)).head.seq == 8
    await room.cancel(one)
    kept = await room.kept(one)
    assert (kept.state, kept.words[-1], kept.head.seq) == (State.CANCELED, "canceled", 9)
    await load_library(room.link.call)


async def test_a_head_ends_where_all_else_has_its_default(room: Room) -> None:
    """What most operations have no use for is not kept; a head that has it all the same is read and ended alike."""
    short, whole = await room.accepted(), await room.accepted()
    urgent = await room.accepted(priority=7)
    key, least = room.store.keys.operation(whole), len(HEAD) - len(HEAD_DEFAULTS)
    (head,) = await room.link.call("HMGET", key, "h")
    assert head[:3] == bytes([0xDC, 0, least])
    longer = bytes([0xDC, 0, len(HEAD)]) + head[3:] + b"".join(map(encode, HEAD_DEFAULTS))
    await room.link.call("HSET", key, "h", longer)
    for one, priority in ((short, 0), (whole, 0), (urgent, 7)):
        assert (await room.kept(one)).head.priority == priority
        assert (await room.succeed(one)).verdict is Completion.DONE
        kept = await room.kept(one)
        assert (kept.state, kept.head.priority, kept.words[-1]) == (State.SUCCEEDED, priority, "succeeded")
    lengths = [(await room.link.call("HGET", room.store.keys.operation(one), "h"))[2] for one in (short, whole, urgent)]
    assert lengths == [least, least, len(HEAD)]


async def test_a_purge_leaves_no_key_behind(room: Room) -> None:
    """Retention is over: record, key, index, timer and dead letters are gone, and the store is as it was before."""
    before = await room.snapshot()
    one = await room.accepted("key-1", retention_ms=1, callback=1)
    await room.started(one)
    await room.cancel(one)
    await room.store.defer(one, 1, Kind.CANCEL, tries=1, delay_ms=1, dead=True, detail="404")
    await room.succeed(one)
    await room.store.defer(one, 1, Kind.CALLBACK, tries=1, delay_ms=1, dead=True, detail="404")
    await room.link.call("ZADD", room.store.keys.due, "XX", 1, one)  # the 72 h of its dead letters are over
    await purged(room, one)
    after = await take(room.link)
    after.sessions = before.sessions
    assert after == before


async def test_what_is_still_owed_outlives_retention(room: Room) -> None:
    """A callback that is not delivered keeps the record; the purge follows the delivery."""
    one = await room.accepted(retention_ms=1, callback=1)
    await room.succeed(one)
    await room.store.defer(one, 1, Kind.CALLBACK, tries=1, delay_ms=30, dead=False, detail="503")
    (work,) = await room.claimed()
    assert (work.id, work.kind) == (one, Kind.CALLBACK)
    await room.store.delivered(one, 1, Kind.CALLBACK)
    await purged(room, one)


async def test_a_key_can_be_used_again_after_retention(room: Room) -> None:
    """And then starts a new operation (I6), also with other content."""
    one = await room.accepted("key-1", retention_ms=1)
    await room.succeed(one)
    await purged(room, one)
    order = room.order("key-1", content="c2")
    assert isinstance(await room.start(order), Accepted)
    assert order.id != one
    assert (await room.snapshot()).idempotency == {"key-1": order.id}


async def test_pages_go_from_new_to_old_without_gaps(room: Room) -> None:
    """Also over operations that share a millisecond."""
    ids = {await room.accepted() for _ in range(25)}
    ids |= {await room.accepted(ns="others")}
    seen: list[tuple[str, int]] = []
    before: tuple[int, str] | None = None
    while page := await room.store.page(NS, before=before, since_ms=0, until_ms=1 << 50, limit=4):
        seen += page
        before = (page[-1][1], page[-1][0])
    assert len(seen) == 25
    assert {one for one, _ in seen} < ids
    assert [at for _, at in seen] == sorted((at for _, at in seen), reverse=True)


async def test_a_record_that_cannot_be_read_does_not_stop_the_others(room: Room) -> None:
    """Bytes flipped on disk: its timer, its lease and its place in line are set aside; all other work goes on."""
    rotten = [await room.accepted(lease_ms=1), await room.accepted(lease_ms=1), await room.accepted(blocked="rate")]
    for one in rotten:
        await room.link.call("HSET", room.store.keys.operation(one), "h", b"\xc1 not a head")
    fine = await room.accepted(lease_ms=1)
    assert [work.id for work in await room.claimed()] == [fine]
    waiting = await room.accepted(blocked="rate")
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [waiting]
    assert await room.store.leave(G1) == 0
    for one in rotten:
        await room.link.call("DEL", room.store.keys.operation(one))
        await room.link.call("ZREM", room.store.keys.due, one)
        await room.link.call("ZREM", room.store.keys.index(NS), one)
