"""The same store on Redis >= 7: one library, one set of verbs. Runs where a redis-server is on PATH."""

from __future__ import annotations

import shutil
from asyncio import gather
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.machine import Kind, State
from mesh.store import binary
from mesh.store.functions import load_library
from mesh.store.gate import Durability, inspect
from mesh.store.verbs import Accepted, Completion, KeyReused, Replayed, Task
from tests.model.fixtures import ENDPOINT, G1, G2, Room, eventually
from tests.servers import SAFE, RawServer, connected


@pytest.fixture
async def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    """Two gateways and an endpoint on a Redis of its own, past the gate."""
    found = shutil.which("redis-server")
    told = binary._version(Path(found)) if found else None
    if told is None or told.flavor != "redis" or not binary.supported(told):
        pytest.skip("there is no redis-server >= 7 on PATH")
    monkeypatch.setattr("tests.servers.find_server", lambda: (found, told))
    server = RawServer(tmp_path, SAFE)
    try:
        server.wait_ready()
        async with connected(server.address) as link:
            verdict = await inspect(link.call, declared=Durability.ALWAYS, known="")
            assert (verdict.fsync, verdict.compact_records, verdict.warnings) == ("always", True, ())
            await load_library(link.call)
            room = Room(link)
            await room.open()
            yield room
            await room.snapshot()
    finally:
        server.kill()


async def test_every_verb(redis: Room) -> None:
    """Start, repeat, refusal, 201, heartbeat, retry, release, cancel, completion, callback, takeover, purge."""
    room = redis
    order = room.order("key-1")
    assert isinstance(await room.start(order), Accepted)
    assert isinstance(await room.start(room.order("key-1")), Replayed)
    assert isinstance(await room.start(room.order("key-1", "c2")), KeyReused)

    ended, canceled = await room.accepted(callback=1), await room.accepted(blocked="rate")
    started, retried, released, lost = [await room.accepted(session=one) for one in (G1, G1, G1, G2)]
    assert (await room.succeed(ended)).verdict is Completion.DONE
    assert (await room.succeed(ended)).verdict is Completion.SAME
    await room.store.delivered(ended, 1, Kind.CALLBACK)
    assert (await room.cancel(canceled)).verdict == "canceled"
    assert (await room.started(started, beat_ms=60_000)).verdict == "started"
    assert await room.store.heartbeat([Task(started, 1, 1, 60_000)]) == ["ok"]
    assert (await room.cancel(started)).verdict != "canceled"
    assert (await room.report_canceled(started)).verdict is Completion.DONE
    assert (await room.retry(retried, delay_ms=1)).verdict == "backing_off"
    assert (await room.store.release(released, 1, 1, "unreachable")).verdict == "waiting"
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [released]
    await room.died(G2)
    await room.store.beat(G1)
    assert {work.id for work in await room.claimed(count=2)} == {retried, lost}
    assert [await room.state(one) for one in (ended, canceled, started)] == [
        State.SUCCEEDED, State.CANCELED, State.CANCELED,
    ]  # fmt: skip
    assert await room.ended_by_timer(await room.accepted(close_ms=1))

    purged = await room.accepted(retention_ms=1)
    await room.succeed(purged)

    async def gone() -> bool:
        await room.claim()
        return purged not in (await room.snapshot()).operations

    await eventually(gone)


async def test_many_in_one_turn(redis: Room) -> None:
    """What travels together is merged there too, and a limit is kept to the operation."""
    await redis.endpoint(name="few", max_concurrency=3)
    plain = [redis.order(f"k{number}") for number in range(100)]
    few = [redis.order(f"f{number}", endpoint="e-few") for number in range(20)]
    again = [redis.order(order.key) for order in plain]
    replies = await gather(*[redis.start(order) for order in (*plain, *few, *again)])
    assert sum(isinstance(reply, Replayed) for reply in replies) == 100
    ends = await gather(*[redis.succeed(order.id) for order in plain])
    assert {end.verdict for end in ends} == {Completion.DONE}
    snapshot = await redis.snapshot()
    assert sum(snapshot.operations[order.id].head.attempt == 1 for order in few) == 3
