"""A store whose memory is full: nothing new is admitted, everything under way may end (I28, I29)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from mesh.errors import StoreUnavailable
from mesh.machine import Kind, State
from mesh.store.durable import JOURNAL, STREAM
from mesh.store.functions import load_library
from mesh.store.link import Link
from mesh.store.verbs import Accepted, Completion, Task
from tests.fundamentals.test_store_journal import A, B, append, running
from tests.fundamentals.test_store_suspend import child as child_of
from tests.fundamentals.test_store_suspend import suspend
from tests.model.fixtures import ENDPOINT, G1, G2, NS, Room, eventually
from tests.servers import RawServer


@pytest.fixture
async def own(start_server: Callable[..., RawServer]) -> AsyncIterator[Room]:
    """A store of its own, for it gets full."""
    link = Link(start_server().address)
    await link.connect()
    await load_library(link.call)
    room = Room(link)
    await room.open()
    yield room
    await room.snapshot()
    await link.close()


async def fill(room: Room) -> None:
    """One byte is less than any store uses."""
    await room.link.call("CONFIG", "SET", "maxmemory", 1)


async def make_room(room: Room) -> None:
    await room.link.call("CONFIG", "SET", "maxmemory", 0)


async def test_a_start_is_refused_and_leaves_nothing_behind(own: Room) -> None:
    """No record and, above all, no claimed key: the same request succeeds when there is room again."""
    before = await own.snapshot()
    await fill(own)
    order = own.order("key-1")
    with pytest.raises(StoreUnavailable, match="out of memory"):
        await own.start(order)
    assert await own.snapshot() == before
    await make_room(own)
    assert isinstance(await own.start(order), Accepted)


async def test_new_endpoints_are_refused_and_leave_nothing_behind(own: Room) -> None:
    """Registration is admission too; heartbeats of instances that are there go on."""
    await own.catalog.instance_put("work", NS, "i-1", b"{}", 5_000)
    before = await own.snapshot()
    await fill(own)
    with pytest.raises(StoreUnavailable):
        await own.endpoint(name="more")
    assert (await own.catalog.instance_put("work", NS, "i-1", b"{}", 5_000))[0] == "renewed"
    assert await own.snapshot() == before


async def test_everything_under_way_may_end(own: Room) -> None:
    """Completion, failure, cancel, 201, heartbeat, retry, release, takeover, purge: all as with room to spare."""
    ended, canceled, started = await own.accepted(callback=1), await own.accepted(blocked="rate"), await own.accepted()
    retried, released, lost = await own.accepted(), await own.accepted(), await own.accepted(session=G2)
    purged = await own.accepted("key-1", retention_ms=1)
    await own.died(G2)
    await fill(own)
    assert (await own.succeed(ended)).verdict is Completion.DONE
    await own.store.delivered(ended, 1, Kind.CALLBACK)
    assert (await own.cancel(canceled)).verdict == "canceled"
    assert (await own.started(started)).verdict == "started"
    assert await own.store.heartbeat([Task(started, 1, 1, 9_000)]) == ["ok"]
    assert (await own.fail(started)).verdict is Completion.DONE
    assert (await own.retry(retried, delay_ms=1)).verdict == "backing_off"
    assert (await own.store.release(released, 1, 1, "unreachable")).verdict == "waiting"
    assert [work.id for work in (await own.store.unblock(ENDPOINT, G1, 10))[0]] == [released]
    await own.store.beat(G1)
    assert {work.id for work in await own.claimed(count=2)} == {retried, lost}
    await own.succeed(purged)

    async def gone() -> bool:
        await own.claim()
        return purged not in (await own.snapshot()).operations

    await eventually(gone)
    assert await own.state(ended) is State.SUCCEEDED


async def test_journals_grow_no_more_and_their_operations_may_end(own: Room) -> None:
    """What grows without end is refused, and waits; heartbeats, suspension and the end of a child are not (P220)."""
    one = await running(own)
    child = await child_of(own, one)
    await append(own, one, 0, A)
    await fill(own)
    for into in (JOURNAL, STREAM):
        with pytest.raises(StoreUnavailable, match="out of memory"):
            await append(own, one, 1, B, into=into)
    assert await own.store.heartbeat([Task(one, 1, 1, 9_000, b"1")]) == ["ok"]
    assert [line.body for line in (await own.store.lines(one, JOURNAL, 0, 9)).lines] == [A]
    assert (await suspend(own, one, 1)).status == "ok"
    assert (await own.succeed(child)).verdict is Completion.DONE
    (work,) = await own.claimed()
    assert (work.id, work.journal) == (one, 2)
    assert (await own.succeed(one, attempt=2)).verdict is Completion.DONE


async def test_reads_go_on(own: Room) -> None:
    """What is kept can be read and listed. A repeated start is refused like any: it cannot be told before it runs."""
    one = await own.accepted("key-1")
    await fill(own)
    record = await own.store.read(one, events=True)
    assert record is not None
    assert len(record.events) == 2
    page = await own.store.page(NS, before=None, since_ms=0, until_ms=1 << 50, limit=10)
    assert page == [(one, record.head.created_at)]
    with pytest.raises(StoreUnavailable):
        await own.start(own.order("key-1"))
