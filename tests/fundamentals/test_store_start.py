"""Starting an operation: accepted and leased in one call, repeated safely, refused without a trace."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.msgpack import decode
from msgspec.structs import replace

from mesh.errors import StoreUnavailable
from mesh.machine import Delivery, State
from mesh.store.layout import INSIDE_BYTES_MAX, Request, encode
from mesh.store.library import LIMITS
from mesh.store.starting import NoEndpoint, NoSession, start_parts
from mesh.store.verbs import Accepted, KeyReused, Replayed
from tests.model.fixtures import ENDPOINT, G1, G2, NS, Room
from tests.model.snapshot import take


async def test_accepting_and_leasing_the_first_attempt_are_one_call(room: Room) -> None:
    """The reply says attempt 1: it is leased to the accepting gateway, which sends it at once."""
    order = room.order("key-1", lease_ms=35_000)
    reply = await room.start(order)
    kept = await room.kept(order.id)
    assert reply == Accepted(kept.head.created_at, 1, "")
    assert (kept.state, kept.head.start, kept.head.owner) == (State.SCHEDULED, Delivery.LEASED, G1)
    assert kept.head.start_at == kept.head.created_at + 35_000
    assert kept.words == ["accepted", "dispatched"]


async def test_what_is_kept_is_what_was_sent(room: Room) -> None:
    """Request and input are kept byte for byte; an empty input takes no room."""
    order = room.order("key-1", content="other-digest", callback=1)
    await room.start(order, b"\x00 any bytes \xff")
    record = await room.store.read(order.id)
    assert record is not None
    assert (record.request.endpoint, record.request.idempotency_key) == ("work", "key-1")
    assert (record.head.namespace, record.head.endpoint) == (NS, ENDPOINT)
    content = (await room.kept(order.id)).content
    assert (content.key, content.digest) == ("key-1", "other-digest")
    assert await room.store.input(order.id) == b"\x00 any bytes \xff"
    empty = room.order()
    await room.start(empty, b"")
    assert await room.store.input(empty.id) is None


@pytest.mark.parametrize("length", [1, INSIDE_BYTES_MAX, INSIDE_BYTES_MAX + 1])
async def test_an_input_comes_back_wherever_it_is_kept(room: Room, length: int) -> None:
    """Small ones lie with the request, others beside it: to who reads them, and to who sends them."""
    order, body = room.order(blocked="breaker"), bytes(length)
    await room.start(order, body)
    assert await room.store.input(order.id) == body
    assert ("i" in (await room.kept(order.id)).fields) == (length > INSIDE_BYTES_MAX)
    ((work,), _) = await room.store.unblock(ENDPOINT, G1, 1)
    assert work.extra == body


async def test_the_same_key_and_content_is_the_same_operation(room: Room) -> None:
    """A repeat gets the first operation's id and its present state, whichever gateway it reaches."""
    one = await room.accepted("key-1")
    assert await room.start(room.order("key-1")) == Replayed(one, State.SCHEDULED)
    await room.succeed(one)
    assert await room.start(room.order("key-1", session=G2)) == Replayed(one, State.SUCCEEDED)
    assert len((await room.snapshot()).operations) == 1


async def test_the_same_key_with_other_content_is_refused_and_changes_nothing(room: Room) -> None:
    """I3: the refusal names the operation that has the key; the record is untouched to the byte."""
    one = await room.accepted("key-1", content="c1")
    before = await room.kept(one)
    assert await room.start(room.order("key-1", content="c2")) == KeyReused(one)
    assert await room.kept(one) == before


async def test_concurrent_repeats_create_one_operation(room: Room) -> None:
    """I4: whichever of many equal starts comes first is accepted, all others are replays of it."""
    replies = await asyncio.gather(*[room.start(room.order("key-1")) for _ in range(20)])
    assert sum(isinstance(reply, Accepted) for reply in replies) == 1
    assert len({reply.id for reply in replies if isinstance(reply, Replayed)}) == 1
    assert len((await room.snapshot()).operations) == 1


async def test_starts_without_a_key_are_operations_of_their_own(room: Room) -> None:
    """No key, no idempotency: equal content makes two operations."""
    assert await room.accepted() != await room.accepted()
    assert (await room.snapshot()).idempotency == {}


@pytest.mark.parametrize("key", ["", "key-1"])
async def test_a_start_sent_again_after_a_lost_reply_is_answered_like_the_first(room: Room, key: str) -> None:
    """The link repeats a call whose reply was lost: same id, same answer, one operation, one attempt."""
    order = room.order(key)
    first = await room.start(order)
    before = await room.kept(order.id)
    again = await room.start(order)
    assert isinstance(first, Accepted)
    assert isinstance(again, Accepted)
    assert replace(again, at_ms=first.at_ms) == first
    assert await room.kept(order.id) == before


async def test_a_start_sent_again_does_not_take_an_attempt_that_somebody_else_holds(room: Room) -> None:
    """Between the lost reply and the repeat the session was taken for dead, and attempt 2 went to another gateway.

    The repeat is still accepted, but with no attempt to send: otherwise attempt 2 would go out twice (I9).
    """
    order = room.order("key-1")
    await room.start(order)
    await room.died(G1)
    await room.store.beat(G2)
    (work,) = await room.claimed(session=G2)
    assert work.head.attempt == 2
    await room.store.beat(G1, join=True)
    again = await room.start(order)
    assert isinstance(again, Accepted)
    assert again.attempt == 0


async def test_a_start_sent_again_after_the_end_has_nothing_to_send(room: Room) -> None:
    """The same when the operation ended in between: accepted, and no attempt is leased."""
    order = room.order("key-1")
    await room.start(order)
    await room.succeed(order.id)
    again = await room.start(order)
    assert isinstance(again, Accepted)
    assert again.attempt == 0


async def test_a_hindrance_known_to_the_gateway_lets_it_wait(room: Room) -> None:
    """Accepted, not dispatched, no attempt used; the reason stands beside the state."""
    order = room.order(blocked="no_instance")
    reply = await room.start(order)
    assert isinstance(reply, Accepted)
    assert (reply.attempt, reply.blocked) == (0, "no_instance")
    kept = await room.kept(order.id)
    assert (kept.state, kept.head.attempt, kept.head.blocked) == (State.SCHEDULED, 0, "no_instance")
    assert kept.words == ["accepted", "blocked"]
    again = await room.start(order)
    assert isinstance(again, Accepted)
    assert (again.attempt, again.blocked) == (0, "no_instance")


async def test_an_unknown_endpoint_is_refused_without_a_trace(room: Room) -> None:
    """Neither record nor key: the same key works once the endpoint is there."""
    with pytest.raises(NoEndpoint):
        await room.start(room.order("key-1", endpoint="e-2"))
    snapshot = await room.snapshot()
    assert (snapshot.operations, snapshot.idempotency, snapshot.index) == ({}, {}, {})
    assert await room.accepted("key-1")


async def test_a_deleted_endpoint_takes_no_new_starts_but_answers_repeats(room: Room) -> None:
    """What was accepted before the deletion is still found by its key."""
    one = await room.accepted("key-1")
    await room.catalog.endpoint_delete("work", NS, "")
    assert await room.start(room.order("key-1")) == Replayed(one, State.SCHEDULED)
    assert await room.start(room.order("key-1", content="c2")) == KeyReused(one)
    with pytest.raises(NoEndpoint):
        await room.start(room.order("key-2"))
    assert set((await room.snapshot()).idempotency) == {"key-1"}


async def test_a_session_that_was_taken_for_dead_accepts_nothing(room: Room) -> None:
    """Its leases would be nobody's. The gateway joins anew and repeats; the key was not claimed meanwhile."""
    with pytest.raises(NoSession):
        await room.start(room.order("key-1", session="g9.s-1"))
    assert (await room.snapshot()).idempotency == {}
    assert await room.accepted("key-1")


async def test_what_is_known_of_a_start_is_not_taken_for_its_endpoint_and_session(room: Room) -> None:
    """One like those before it, when the endpoint is paused, limited or gone, or the session was taken for dead."""
    for _ in range(2):
        await room.accepted()
    await room.endpoint(max_concurrency=1)
    out, full = await room.start(room.order()), await room.start(room.order())
    await room.endpoint()
    await room.catalog.endpoint_pause("work", NS, paused=True)
    paused = await room.start(room.order())
    found = [(one.attempt, one.blocked) for one in (out, full, paused) if isinstance(one, Accepted)]
    assert found == [(1, ""), (0, "concurrency"), (0, "paused")]
    await room.catalog.endpoint_pause("work", NS, paused=False)
    await room.snapshot()
    await room.died(G1)
    await room.store.beat(G2)
    with pytest.raises(NoSession):
        await room.start(room.order("key-1"))
    assert (await room.snapshot()).idempotency == {}


async def test_arguments_that_the_store_remembers_are_each_starts_own(room: Room) -> None:
    """More of them than it remembers, come round twice, also in one call."""
    times = [*range(60_000, 60_000 + LIMITS["remembered"] + 2)] * 2
    orders = [room.order(close_ms=time, priority=time % 3) for time in times]
    for order in orders[:20]:
        await room.start(order)
    await asyncio.gather(*[room.start(order) for order in orders[20:]])
    kept = (await room.snapshot()).operations
    heads = [kept[order.id].head for order in orders]
    assert [head.close_by - head.created_at for head in heads] == times
    assert [head.priority for head in heads] == [time % 3 for time in times]


@pytest.mark.parametrize("missing", ["close_ms", "lease_ms", "ns", "callback", 1, 2, 3])
async def test_arguments_that_make_no_sense_leave_nothing_half_written(room: Room, missing: str | int) -> None:
    """A gateway of another version may leave out an argument. The function fails before its first write."""
    order = room.order("key-1")
    first, *rest = start_parts(order, Request("work", "Svc", "op", None), b"x")
    how = {name: value for name, value in decode(first).items() if name != missing}
    parts = [part for number, part in enumerate(rest, start=1) if number != missing]
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await room.store.called("mesh1_start", encode(how), *parts)
    with pytest.raises(StoreUnavailable):
        await room.store.called("mesh1_start", encode(how))
    with pytest.raises(StoreUnavailable):
        await room.store.fcall("mesh1_start", order, *parts[3:])
    snapshot = await take(room.link)
    assert (snapshot.operations, snapshot.idempotency, snapshot.index) == ({}, {}, {})
    assert snapshot.timers == {}
