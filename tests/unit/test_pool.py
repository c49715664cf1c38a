"""What the pool does with connections: reuse, limits, deadlines, canceling, closing."""

from __future__ import annotations

import asyncio

import pytest

from mesh.clock import sleep
from mesh.errors import NotSent, PeerFault, ReplyLost
from mesh.pool import Reply
from tests.unit.pool_peers import (
    OK,
    TIMEOUT_S,
    Line,
    answering,
    answering_then_closing,
    on_both_loops,
    peer,
    pool_of,
    send,
    until,
)

# -- connections that were closed while idle


@on_both_loops
async def test_a_stale_connection_is_replaced_once_and_the_caller_does_not_notice() -> None:
    bodies: list[tuple[int, bytes]] = []

    async def script(line: Line) -> None:
        bodies.append((line.number, (await line.request())[-2:]))
        line.send(OK)
        bodies.append((line.number, (await line.request())[-2:]))  # the first connection reads it and dies
        if line.number > 1:
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=1) as pool:
        for body in (b"r1", b"r2", b"r3"):
            assert (await send(pool, server.target, body)).status == 200
        assert bodies == [(1, b"r1"), (1, b"r2"), (2, b"r2"), (2, b"r3")]
        assert pool.stats() == {"open": 1, "idle": 1, "waiting": 0}


@on_both_loops
async def test_the_repeat_happens_once_only() -> None:
    async def script(line: Line) -> None:
        await line.request()
        if line.number == 1:
            line.send(OK)
            await line.request()

    async with peer(script) as server, pool_of() as pool:
        await send(pool, server.target)
        with pytest.raises(ReplyLost):
            await send(pool, server.target)
        assert server.connections == 2


@on_both_loops
async def test_a_reused_connection_that_answered_a_byte_is_not_repeated() -> None:
    requests = 0

    async def script(line: Line) -> None:
        nonlocal requests
        requests += 1
        await line.request()
        line.send(OK)
        await line.request()
        requests += 1
        line.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async with peer(script) as server, pool_of() as pool:
        await send(pool, server.target)
        with pytest.raises(ReplyLost):
            await send(pool, server.target)
        assert requests == 2


@on_both_loops
async def test_a_stale_connection_to_a_peer_that_is_gone_is_unknown_not_unsent() -> None:
    read = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        line.send(OK)
        await line.request()
        read.set()
        assert server.server is not None
        server.server.close()

    async with peer(script) as server, pool_of() as pool:
        await send(pool, server.target)
        with pytest.raises(ReplyLost, match="then: Could not connect"):
            await send(pool, server.target)
        assert read.is_set()


@on_both_loops
async def test_a_connection_closed_while_idle_is_forgotten() -> None:
    async with peer(answering_then_closing(OK)) as server, pool_of() as pool:
        for turn in range(1, 4):
            await send(pool, server.target)
            await until(lambda: pool.stats() == {"open": 0, "idle": 0, "waiting": 0})
            assert server.connections == turn


@on_both_loops
async def test_idle_connections_are_closed_after_their_time() -> None:
    async with peer(answering(OK)) as server, pool_of(idle_s=0.1) as pool:
        await asyncio.gather(*(send(pool, server.target) for _ in range(5)))
        assert pool.stats()["idle"] == 5
        await until(lambda: pool.stats() == {"open": 0, "idle": 0, "waiting": 0})
        await until(lambda: not server.lines)
        await until(lambda: not pool._lanes)
        assert pool._timer is None  # nothing to do, nothing that wakes


# -- limits and the queue


@on_both_loops
async def test_connections_per_host_are_limited_and_waiters_are_served_in_order() -> None:
    order: list[bytes] = []
    busy = most = 0

    async def script(line: Line) -> None:
        nonlocal busy, most
        while True:
            order.append((await line.request())[-2:])
            busy += 1
            most = max(most, busy)
            await sleep(0.005)
            busy -= 1
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=2) as pool:
        bodies = [b"%02d" % number for number in range(20)]
        await asyncio.gather(*(send(pool, server.target, body) for body in bodies))
        assert (most, server.connections, sorted(order)) == (2, 2, bodies)
        assert all(abs(order.index(body) - place) <= 1 for place, body in enumerate(bodies))


@on_both_loops
async def test_a_full_queue_and_a_late_turn_are_not_sent() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await go.wait()
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=1, max_waiting=2) as pool:
        first = asyncio.ensure_future(send(pool, server.target))
        late = asyncio.ensure_future(send(pool, server.target, timeout_s=0.1))
        patient = asyncio.ensure_future(send(pool, server.target))
        await until(lambda: pool.stats() == {"open": 1, "idle": 0, "waiting": 2})
        with pytest.raises(NotSent, match="busy"):
            await send(pool, server.target)
        with pytest.raises(NotSent, match="became free in time"):
            await late
        go.set()
        assert [(await task).status for task in (first, patient)] == [200, 200]


@on_both_loops
async def test_a_waiter_takes_over_the_place_of_a_connection_that_died() -> None:
    async def script(line: Line) -> None:
        await line.request()
        while line.number > 1:
            line.send(OK)
            await line.request()

    async with peer(script) as server, pool_of(max_per_host=1) as pool:
        outcomes = await asyncio.gather(*(send(pool, server.target) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ReplyLost, Reply, Reply]
        assert server.connections == 2


@on_both_loops
async def test_the_total_limit_takes_idle_connections_of_other_hosts_first() -> None:
    go = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.request()
        await go.wait()
        line.send(OK)

    async with peer(answering(OK)) as one, peer(slow) as two, pool_of(max_open=1) as pool:
        await send(pool, one.target)
        held = asyncio.ensure_future(send(pool, two.target))
        await until(lambda: two.connections == 1 and not one.lines)
        with pytest.raises(NotSent, match="No free connection"):
            await send(pool, one.target)
        go.set()
        assert (await held).status == 200


# -- cancelling and closing


@on_both_loops
async def test_cancelling_drops_the_connection_and_frees_its_place() -> None:
    dropped = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        if line.number == 1:
            await line.closed_by_client()
            dropped.set()
        else:
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=1) as pool:
        task = asyncio.ensure_future(send(pool, server.target))
        await until(lambda: server.connections == 1)
        waiter = asyncio.ensure_future(send(pool, server.target))
        other = asyncio.ensure_future(send(pool, server.target))
        await until(lambda: pool.stats()["waiting"] == 2)
        waiter.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(dropped.wait(), TIMEOUT_S)
        assert (await other).status == 200
        assert waiter.cancelled()


@on_both_loops
async def test_a_waiter_cancelled_in_the_turn_it_is_served_passes_the_connection_on() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await go.wait()
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=1) as pool:

        async def first() -> None:
            await send(pool, server.target)
            second.cancel()  # its turn has come: the connection is its already, it only has not run yet

        task = asyncio.ensure_future(first())
        await until(lambda: pool.stats()["open"] == 1)
        second = asyncio.ensure_future(send(pool, server.target))
        third = asyncio.ensure_future(send(pool, server.target))
        await until(lambda: pool.stats()["waiting"] == 2)
        go.set()
        await task
        assert (await third).status == 200
        assert second.cancelled()
        assert (server.connections, pool.stats()) == (1, {"open": 1, "idle": 1, "waiting": 0})


@on_both_loops
async def test_cancelling_at_any_moment_leaks_nothing() -> None:
    async def script(line: Line) -> None:
        for turn in range(1000):
            await line.request()
            if (line.number + turn) % 5 == 0:
                return  # stale, or lost
            await sleep(0.001 * (turn % 3))
            line.send(OK)

    async with peer(script) as server, pool_of(max_per_host=4) as pool:

        async def one(number: int) -> str:
            task = asyncio.ensure_future(send(pool, server.target))
            if number % 3:
                await asyncio.wait([task], timeout=0.0007 * (number % 11))
                task.cancel()
            try:
                return str((await task).status)
            except PeerFault:
                return "fault"
            except asyncio.CancelledError:
                return "canceled"

        outcomes = [outcome for _ in range(10) for outcome in await asyncio.gather(*map(one, range(60)))]
        assert {outcomes.count(kind) > 10 for kind in ("200", "fault", "canceled")} == {True}
        await until(lambda: pool.stats()["idle"] == pool.stats()["open"])
        await until(lambda: len(server.lines) == pool.stats()["open"])
        lane = pool._lanes[server.target.origin]
        assert lane.slots == len(lane.connections) == len(lane.idle) <= 4


@on_both_loops
async def test_cancelling_while_connecting_leaves_no_socket() -> None:
    async with peer(answering(OK)) as server, pool_of(max_per_host=2) as pool:
        for steps in range(6):
            task = asyncio.ensure_future(send(pool, server.target))
            for _ in range(steps):
                await sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await until(lambda: len(server.lines) == pool.stats()["open"] == pool.stats()["idle"])


@on_both_loops
async def test_close_ends_what_runs_and_refuses_what_comes() -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.closed_by_client()

    async with peer(script) as server, pool_of(max_per_host=1) as pool:
        running = asyncio.ensure_future(send(pool, server.target))
        waiting = asyncio.ensure_future(send(pool, server.target))
        await until(lambda: server.connections == 1 and pool.stats()["waiting"] == 1)
        await pool.close()
        for task, fault in ((running, ReplyLost), (waiting, NotSent)):
            with pytest.raises(fault):
                await task
        with pytest.raises(NotSent):
            await send(pool, server.target)
        await until(lambda: not server.lines)


@on_both_loops
async def test_a_request_that_connects_while_the_pool_closes_is_not_sent() -> None:
    async with peer(answering(OK)) as server, pool_of() as pool:
        task = asyncio.ensure_future(send(pool, server.target))
        await sleep(0)
        await pool.close()
        with pytest.raises(NotSent, match="closed"):
            await task
        await until(lambda: not server.lines)
