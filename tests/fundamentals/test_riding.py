"""P460: what nobody waits for is written with the next call, or by itself after RIDE_S; whoever asks later sees it."""

from __future__ import annotations

import asyncio

import pytest

from mesh.clock import sleep
from mesh.errors import StoreUnavailable
from mesh.machine import Delivery, Kind, State
from mesh.store import riding
from mesh.store.link import Link
from mesh.store.merging import MERGED_MAX
from mesh.store.verbs import Completion, Moved
from tests.model.fixtures import G1, Room


@pytest.fixture
def long_rides(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no machine is slow enough for one to end by itself."""
    monkeypatch.setattr(riding, "RIDE_S", 3_600.0)


async def rides(room: Room, one: str) -> asyncio.Task[Moved]:
    """The agent answered 201, and that has been asked of the link."""
    booking = asyncio.ensure_future(room.store.started(one, 1, 1, G1, "token-1", 0, rides=True))
    waiting = room.link.waiting
    while room.link.waiting == waiting:
        await sleep(0)
    return booking


@pytest.mark.usefixtures("long_rides")
class TestTaken:
    async def test_it_leaves_in_the_write_of_the_next_call_that_may_travel_with_it(self, room: Room) -> None:
        one, other = await room.accepted(callback=2), await room.accepted()
        writes = room.link.writes
        booking = await rides(room, one)
        for _ in range(10):
            await sleep(0)
        assert room.link.writes == writes
        assert not booking.done()
        assert (await room.succeed(other)).verdict is Completion.DONE
        assert (await booking).verdict == "started"
        assert room.link.writes == writes + 1

    async def test_a_completion_that_comes_first_takes_its_201_along(self, room: Room) -> None:
        one = await room.accepted()
        writes = room.link.writes
        booking = await rides(room, one)
        assert (await room.succeed(one)).verdict is Completion.DONE
        assert (await booking).verdict == "started"
        assert room.link.writes == writes + 1
        assert (await room.kept(one)).state is State.SUCCEEDED

    async def test_a_plain_call_finds_it_done(self, room: Room) -> None:
        one = await room.accepted()
        booking = await rides(room, one)
        record = await room.store.read(one)
        assert record is not None
        assert record.state is State.STARTED
        assert (await booking).verdict == "started"

    async def test_a_plain_call_finds_it_done_in_a_turn_that_others_opened(self, room: Room) -> None:
        one, other = await room.accepted(), await room.accepted()
        booking = await rides(room, one)
        ended, record = await asyncio.gather(room.succeed(other), room.store.read(one))
        assert ended.verdict is Completion.DONE
        assert record is not None
        assert record.state is State.STARTED
        assert (await booking).verdict == "started"

    async def test_so_many_that_no_more_go_into_one_call_wait_for_none(self, room: Room) -> None:
        ids = [await room.accepted() for _ in range(MERGED_MAX)]
        writes = room.link.writes
        told = await asyncio.gather(*[await rides(room, one) for one in ids])
        assert [one.verdict for one in told] == ["started"] * MERGED_MAX
        assert room.link.writes == writes + 1

    async def test_that_a_callback_was_taken_rides_too(self, room: Room) -> None:
        one = await room.accepted(callback=2)
        assert (await room.succeed(one)).callback is not None
        writes = room.link.writes
        booking = asyncio.ensure_future(room.store.delivered(one, 1, Kind.CALLBACK))
        while not room.link.waiting:
            await sleep(0)
        await room.accepted()
        await booking
        assert room.link.writes == writes + 1
        assert (await room.kept(one)).head.callback == Delivery.DELIVERED

    async def test_a_link_that_closes_says_that_it_was_not_written(self, room: Room) -> None:
        one = await room.accepted()
        link = Link(room.link.address)
        await link.connect()
        booking = await rides(Room(link), one)
        await link.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await booking
        assert await room.state(one) is State.SCHEDULED


class TestAlone:
    async def test_it_leaves_by_itself(self, room: Room) -> None:
        for _ in range(3):  # also after one that did, and with nothing else asked in between
            one = await room.accepted()
            assert (await (await rides(room, one))).verdict == "started"
            assert await room.state(one) is State.STARTED

    async def test_it_leaves_by_itself_after_others_took_one_along(self, room: Room) -> None:
        one, other = await room.accepted(), await room.accepted()
        first = await rides(room, one)
        await room.succeed(one)
        second = await rides(room, other)
        assert [(await first).verdict, (await second).verdict] == ["started"] * 2


async def test_while_the_store_is_at_work_two_turns_leave_together(room: Room) -> None:
    """They share one fsync, and nobody waits longer for it; where nothing is out each turn leaves at once."""
    link, writes = room.link, room.link.writes
    busy = link.call("EVAL", "for i = 1, 3e7 do end return 'OK'", 0)
    await sleep(0)
    assert link.writes == writes + 1
    one = link.call("PING")
    await sleep(0)
    other = link.call("PING")
    assert await asyncio.gather(busy, one, other) == [b"OK", b"PONG", b"PONG"]
    assert link.writes == writes + 2
