"""A start that begins later: kept at once, leased to nobody, due at its time by the store's clock (P360, P361)."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.machine import Delivery, State
from mesh.store.verbs import Accepted
from tests.model.fixtures import G2, Room

FAR_MS = 3_600_000


async def test_nobody_has_it_before_its_time(room: Room) -> None:
    """P360: no attempt, no lease; its timer is the only thing that knows of it. Then any gateway gets it, once."""
    order = room.order("k", delay_ms=150)
    reply = await room.start(order)
    assert isinstance(reply, Accepted)
    assert (reply.attempt, reply.blocked) == (0, "")
    kept = await room.kept(order.id)
    head = kept.head
    assert (kept.state, head.attempt, head.start, head.owner) == (State.SCHEDULED, 0, Delivery.DUE, "")
    assert (head.delay_ms, head.start_at) == (150, head.created_at + 150)
    assert (await room.claim()).works == []
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt) == (order.id, 1)
    assert (await room.kept(order.id)).events[1].after_ms >= 150


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
    later = await room.accepted(delay_ms=80)
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
