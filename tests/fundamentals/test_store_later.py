"""A start that nobody leases at once: due at its time by the store's clock, or one of many (P360 to P366)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.msgpack import decode

from mesh.clock import sleep
from mesh.machine import Delivery, State
from mesh.store.layout import Request, encode
from mesh.store.starting import NoEndpoint, NoSession, many_parts, start_parts
from mesh.store.verbs import Accepted, KeyReused, Replayed
from tests.model.fixtures import G2, Room
from tests.model.snapshot import take

FAR_MS = 3_600_000


async def test_nobody_has_it_before_its_time(room: Room) -> None:
    """P360: no attempt, no lease; its timer is the only thing that knows of it. Then any gateway gets it, once."""
    order = room.order("k", delay_ms=1_000)
    reply = await room.start(order)
    assert isinstance(reply, Accepted)
    assert (reply.attempt, reply.blocked) == (0, "")
    kept = await room.kept(order.id)
    head = kept.head
    assert (kept.state, head.attempt, head.start, head.owner) == (State.SCHEDULED, 0, Delivery.DUE, "")
    assert (head.delay_ms, head.start_at) == (1_000, head.created_at + 1_000)
    assert (await room.claim()).works == []
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt) == (order.id, 1)
    assert (await room.kept(order.id)).events[1].after_ms >= 1_000


async def test_a_lost_reply_brings_no_second_sender(room: Room) -> None:
    """P360: the call is sent again after a claim has taken the attempt; the work came with the claim already."""
    order = room.order("k", delay_ms=0)
    await room.start(order)
    assert [work.id for work in await room.claimed()] == [order.id]
    again = await room.start(order)
    assert isinstance(again, Accepted)
    assert again.attempt == 0


@pytest.mark.parametrize("when", [{"delay_ms": FAR_MS}, "absolute"])
async def test_timeouts_count_from_then(room: Room, when: Any) -> None:
    """P361."""
    seconds = int((await room.link.call("TIME"))[0])
    fields: dict[str, int] = {"starts_at": (seconds + 3_600) * 1000} if when == "absolute" else when
    one = await room.accepted("", close_ms=5_000, start_ms=2_000, **fields)
    head = (await room.kept(one)).head
    assert (head.close_by, head.start_by) == (head.start_at + 5_000, head.start_at + 2_000)
    assert head.start_at == (fields["starts_at"] if "starts_at" in fields else head.created_at + FAR_MS)


async def test_a_time_that_is_over_is_now(room: Room) -> None:
    """P360."""
    one = await room.accepted(starts_at=1)
    assert [work.id for work in await room.claimed()] == [one]
    assert (await room.kept(one)).head.delay_ms == 0


async def test_a_cancel_before_it_ends_it(room: Room) -> None:
    """P361: nothing was out there."""
    one = await room.accepted(delay_ms=FAR_MS)
    assert (await room.cancel(one)).verdict == "canceled"
    assert await room.state(one) is State.CANCELED


async def test_limits_hold_when_it_comes_up(room: Room) -> None:
    """P361: not before, and with the others in the order in which they could begin."""
    await room.endpoint(max_concurrency=1)
    later = await room.accepted(delay_ms=1_000)
    running = await room.accepted()
    waits = await room.accepted()

    kept = await room.kept(later)
    assert (kept.head.blocked, kept.head.attempt) == ("", 0)
    await room.passed(kept.head.start_at)
    await room.claim()
    assert (await room.kept(later)).head.blocked == "concurrency"
    await room.succeed(running)
    works, _ = await room.store.unblock("e-1", "g1.s-1", 8)
    assert [work.id for work in works] == [waits]


class TestMany:
    async def test_each_is_on_its_own(self, room: Room) -> None:
        """P365: refusals are told in their place; the others are accepted, in one step, and leased to nobody."""
        first = await room.accepted("used", content="other")
        fields: dict[str, Any] = {"delay_ms": 0}
        orders = [
            room.order("a", **fields),
            room.order("used", **fields),
            room.order("a", **fields),
            room.order("b", endpoint="e-none", **fields),
            room.order("c", session="g9.s-9", **fields),
            room.order("d", **fields),
        ]
        replies = await room.many(orders)
        assert [type(one) for one in replies] == [Accepted, KeyReused, Replayed, NoEndpoint, NoSession, Accepted]
        assert replies[1] == KeyReused(first)
        assert replies[2] == Replayed(orders[0].id, State.SCHEDULED)
        kept = (await room.snapshot()).operations
        assert kept.keys() == {first, orders[0].id, orders[5].id}
        assert {kept[one].head.owner for one in (orders[0].id, orders[5].id)} == {""}
        assert {work.id for work in await room.claimed(count=2)} == {orders[0].id, orders[5].id}

    async def test_sent_again_it_changes_nothing(self, room: Room) -> None:
        """P365: the link repeats a call whose reply was lost, also when claims have taken what it accepted."""
        orders = [room.order(f"k{number}", delay_ms=0) for number in range(3)]
        await room.many(orders)
        await room.claimed(count=3)
        before = (await room.snapshot()).operations
        again = await room.many(orders)
        assert [one.attempt for one in again if isinstance(one, Accepted)] == [0, 0, 0]
        assert (await room.snapshot()).operations == before

    async def test_what_cannot_be_read_stops_no_other(self, room: Room) -> None:
        """P365: a gateway of another version leaves out an argument of one start."""
        good = room.order("a", delay_ms=0)
        request = Request("work", "Svc", "op", None)
        how, *rest = start_parts(room.order("b", delay_ms=0), request, b"x")
        bad = {name: value for name, value in decode(how).items() if name != "lease_ms"}
        parts = many_parts([(encode(bad), *rest), start_parts(good, request, b"x")], leased=False)
        replies = await room.store.called("mesh1_start_many", *parts)
        assert [reply[0] for reply in replies] == [b"broken", b"accepted"]
        assert [*(await take(room.link)).operations] == [good.id]
        await room.link.call("FLUSHALL")

    async def test_a_full_line_is_joined(self, room: Room) -> None:
        """P366: what is known to hinder them puts them into the line at once, behind those that wait."""
        await room.endpoint(max_concurrency=1)
        await room.accepted()
        waits = await room.accepted()
        await sleep(0.003)  # of one millisecond, neither is before the other
        order = room.order("a", delay_ms=0)
        (reply,) = await room.many([order])
        assert isinstance(reply, Accepted)
        assert reply.blocked == "concurrency"
        works = [work.id for work in (await room.store.unblock("e-1", "g1.s-1", 8))[0]]
        await room.endpoint()
        works += [work.id for work in (await room.store.unblock("e-1", "g1.s-1", 8))[0]]
        assert works == [waits, order.id]

    async def test_they_fill_the_line_as_one_after_the_other_does(self, room: Room) -> None:
        """P365, P334: what is counted and written once for all of them makes no difference to any."""
        teams = ["red", "blue", "red", "red", "blue", "red", "green", "red"]
        seen: list[Any] = []
        for name, together in (("one", False), ("many", True)):
            endpoint = await room.endpoint(name=name, max_concurrency=1, limits={"*": "0 0 1 3", "green": "0 0 1 1"})
            await room.accepted(endpoint=endpoint)
            orders = [room.order(endpoint=endpoint, ns=team, delay_ms=0) for team in teams]
            if together:
                replies = await room.many(orders)
            else:
                replies = [(await room.many([order]))[0] for order in orders]
            told = [(one.blocked, one.room) if isinstance(one, Accepted) else type(one).__name__ for one in replies]
            _, (queue,) = await room.catalog.queues([endpoint])
            seen.append((told, sorted((row.namespace, row.waiting) for row in queue.namespaces if row.waiting)))
        assert seen[0] == seen[1]
        assert seen[1][0].count("BacklogFull") == 2
        assert seen[1][1] == [("blue", 2), ("green", 1), ("red", 3)]
