"""What the store knows of operations that went the same way (lua/alike.lua) is used, and only where it holds.

That records become the same with and without it is test_store_merging.py's.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from mesh.errors import StoreUnavailable
from mesh.machine import State
from mesh.store.layout import Request
from mesh.store.library import source
from mesh.store.merging import of_all
from mesh.store.starting import start_parts
from mesh.store.verbs import Accepted, Completion
from tests.fundamentals.test_store_merging import at_once
from tests.model.fixtures import Room

WAYS: Final = {
    "look at a start": "local function like_start(root, gather, packed, instance, lease_ms)",
    "look at an end": "local function like_end(root, gather, packed, head, now)",
    "start": "local function start_alike(root, gather, like, id, key, content, input)",
    "end": "local function end_alike(root, gather, like, record, id, outcome)",
}
TRIES_MAX: Final = 300


class Counted:
    """A library that counts how often it took what it knew. The next test loads the plain one, another text."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def load(self) -> None:
        text = source()
        for way, begins in WAYS.items():
            assert text.count(begins) == 1
            text = text.replace(begins, f"{begins} redis_call('INCR', 'counted:{way}')")
        await self._room.link.call("FUNCTION", "LOAD", "REPLACE", text)

    async def of(self, way: str) -> int:
        return int(await self._room.link.call("GET", f"counted:{way}") or 0)

    async def forget(self) -> None:
        await self._room.link.call("DEL", *[f"counted:{way}" for way in WAYS])


async def test_of_one_call_all_but_the_first_are_written_as_that(room: Room) -> None:
    """Nor is what is known from before looked up for each."""
    counted = Counted(room)
    await counted.load()
    orders = [room.order(f"k{n}") for n in range(5)]
    assert {type(one) for one in await at_once(*[room.start(order) for order in orders])} == {Accepted}
    assert await counted.of("start") == 4
    ended = await at_once(*[room.succeed(order.id) for order in orders])
    assert [one.verdict for one in ended] == [Completion.DONE] * 5
    assert await counted.of("end") == 4
    assert [await counted.of(f"look at {one}") for one in ("a start", "an end")] == [1, 1]
    await counted.forget()


async def test_one_alone_becomes_what_one_like_it_became_before(room: Room) -> None:
    """A start whatever the time; an end where one as old was seen, which of hundreds some are."""
    counted = Counted(room)
    await counted.load()
    for tried in range(TRIES_MAX):
        order = room.order(f"k{tried}")
        await room.start(order)
        await room.succeed(order.id)
        assert await counted.of("start") == tried
        if await counted.of("end"):
            break
    assert await counted.of("end") == 1
    assert await room.state(order.id) is State.SUCCEEDED
    await counted.forget()


async def test_each_is_accepted_and_ends_in_its_own_time(room: Room) -> None:
    """Known is what became of those before it, not when."""
    for _ in range(3):
        orders = [room.order(), room.order()]
        before_ms = await now_ms(room)
        await at_once(*[room.start(order) for order in orders])
        between_ms = await now_ms(room)
        ended = await at_once(*[room.succeed(order.id) for order in orders])
        after_ms = await now_ms(room)
        for order, end in zip(orders, ended, strict=True):
            head = (await room.snapshot()).operations[order.id].head
            assert before_ms <= head.created_at <= between_ms <= head.closed_at <= after_ms
            assert end.at_ms == head.closed_at
        async with asyncio.timeout(30):
            while await now_ms(room) == after_ms:
                pass  # the store's clock goes on: the next round's times are others


async def test_one_that_breaks_among_those_alike_stops_no_other(room: Room) -> None:
    """Sent again once that is mended, it is accepted."""
    orders = [room.order(f"k{n}") for n in range(4)]
    spoiled = room.store.keys.operation(orders[2].id)
    await room.link.call("SET", spoiled, "no record")
    replies = await at_once(*[room.start(order) for order in orders])
    assert [type(one) for one in replies] == [Accepted, Accepted, StoreUnavailable, Accepted]
    await room.link.call("DEL", spoiled)
    assert isinstance(await room.start(orders[2]), Accepted)
    ended = await at_once(*[room.succeed(order.id) for order in orders])
    assert [one.verdict for one in ended] == [Completion.DONE] * 4
    assert {*(await room.snapshot()).operations} == {order.id for order in orders}


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_one_like_others_without_an_argument_claims_nothing(room: Room, missing: int) -> None:
    """It left its first one out, as others of its call; one of those came twice, so keys are claimed one by one."""
    whole = [room.order(f"k{n}") for n in range(2)]
    request = Request("work", "Svc", "op", None)
    first, second = (start_parts(order, request, b"1") for order in whole)
    cut = [part for number, part in enumerate(second[1:]) if number != missing]
    replies = await room.store.called("mesh1_start_many", b"3SS", b"", *first, *first[1:], *cut)
    assert [reply[0] for reply in of_all(replies)] == [b"accepted", b"accepted", b"broken"]
    assert {*(await room.snapshot()).idempotency} == {"k0"}


async def now_ms(room: Room) -> int:
    seconds, micros = await room.link.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000
