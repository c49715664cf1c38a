"""Callbacks: owed from the end of the operation until delivered or visibly dead; leased like all that is sent."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, Event, Kind, State
from mesh.store.library import LIMITS
from mesh.store.store import deliveries
from mesh.store.verbs import Replayed
from tests.model.fixtures import G1, G2, NS, RESULT, Room


async def ended(room: Room) -> str:
    """An operation that ended and whose callback G1 has leased."""
    one = await room.accepted(callback=1)
    assert (await room.succeed(one)).callback is not None
    return one


async def defer(room: Room, one: str, *, tries: int, dead: bool = False, delay_ms: int = 1) -> str:
    return await room.store.defer(one, 1, Kind.CALLBACK, tries=tries, delay_ms=delay_ms, dead=dead, detail="503")


async def test_the_end_and_the_callbacks_lease_are_one_call(room: Room) -> None:
    """The completing gateway gets all it needs to send: head, request, outcome."""
    one = await room.accepted(callback=1)
    completed = await room.succeed(one)
    work = completed.callback
    assert work is not None
    assert (work.id, work.kind, work.extra, work.head.callback_tries) == (one, Kind.CALLBACK, RESULT, 1)
    assert work.request.callback_url == "http://receiver.test/done"
    kept = await room.kept(one)
    assert (kept.head.callback, kept.head.owner) == (Delivery.LEASED, G1)


async def test_without_a_callback_none_is_owed(room: Room) -> None:
    one = await room.accepted()
    assert (await room.succeed(one)).callback is None
    assert (await room.kept(one)).head.callback == Delivery.NONE


async def test_a_caller_that_gets_the_answer_itself_gets_no_callback(room: Room) -> None:
    """P80: the first request is still open and carries the outcome."""
    one = await room.accepted(callback=1)
    assert (await room.succeed(one, answered=True)).callback is None
    assert (await room.kept(one)).head.callback == Delivery.DROPPED
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "not_owed"


async def test_a_repeat_makes_the_callback_owed_whatever_the_first_is_answered(room: Room) -> None:
    """The repeat may have got a 201 from another gateway, and a 201 owes the callback."""
    one = await room.accepted("key-1", callback=1)
    assert isinstance(await room.start(room.order("key-1", callback=1, session=G2)), Replayed)
    assert (await room.succeed(one, answered=True)).callback is not None
    assert (await room.kept(one)).head.callback == Delivery.LEASED


async def test_a_callback_may_be_owed_in_any_case(room: Room) -> None:
    """As events are: they are sent also to a caller that got the answer itself."""
    one = await room.accepted(callback=2)
    assert (await room.succeed(one, answered=True)).callback is not None


async def test_a_gateway_taken_for_dead_may_complete_but_leases_nothing(room: Room) -> None:
    """The outcome counts whoever brings it. Its callback is due for the living; leased to the dead it would be lost."""
    one = await room.accepted(callback=1)
    await room.died(G1)
    await room.store.beat(G2)
    completed = await room.succeed(one)
    assert (completed.verdict, completed.callback) == ("done", None)
    assert (await room.kept(one)).head.callback == Delivery.DUE
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.kind) == (one, Kind.CALLBACK)


async def test_the_same_holds_for_its_cancels(room: Room) -> None:
    """Cancel of a started one and of a waiting one, and the 201 that brings the token."""
    started, late = await room.accepted(), await room.accepted()
    waiting = await room.accepted(callback=1, blocked="rate")
    await room.started(started)
    await room.cancel(late)
    await room.store.beat("g3.s-1", join=True)
    assert await room.store.leave("g3.s-1") == 0
    assert (await room.cancel(started, session="g3.s-1")).work is None
    assert (await room.cancel(waiting, session="g3.s-1")).work is None
    assert (await room.started(late, session="g3.s-1")).work is None
    works = await room.claimed(session=G2, count=3)
    assert {(work.id, work.kind) for work in works} == {
        (started, Kind.CANCEL), (waiting, Kind.CALLBACK), (late, Kind.CANCEL)
    }  # fmt: skip


async def test_delivered_once_is_enough(room: Room) -> None:
    """The receiver has it; telling so again changes nothing."""
    one = await ended(room)
    await room.store.delivered(one, 1, Kind.CALLBACK)
    before = await room.kept(one)
    assert (before.head.callback, before.head.owner) == (Delivery.DELIVERED, "")
    assert before.words[-1] == "callback_delivered"
    await room.store.delivered(one, 1, Kind.CALLBACK)
    assert await room.kept(one) == before


async def test_a_failed_try_is_due_again(room: Room) -> None:
    """After its delay, for any gateway, with the next try's number."""
    one = await ended(room)
    assert await defer(room, one, tries=1) == "deferred"
    assert (await room.kept(one)).words[-1] == "callback_failed"
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.kind, work.head.callback_tries) == (one, Kind.CALLBACK, 2)


async def test_a_superseded_try_defers_nothing(room: Room) -> None:
    """Its lease was taken over; what it says about its failure is late. What it says about delivery is not."""
    one = await ended(room)
    await defer(room, one, tries=1)
    await room.claimed(session=G2)
    before = await room.kept(one)
    assert await defer(room, one, tries=1, dead=True) == "same"
    assert await room.kept(one) == before
    await room.store.delivered(one, 1, Kind.CALLBACK)
    assert (await room.kept(one)).head.callback == Delivery.DELIVERED


async def test_a_lease_that_ends_is_taken_again(room: Room) -> None:
    """Nobody booked the try: the callback is sent again."""
    one = await ended(room)
    await room.died(G1)
    await room.store.beat(G2)
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.kind, work.head.callback_tries) == (one, Kind.CALLBACK, 2)


async def test_a_dead_letter_is_visible_and_can_be_sent_again(room: Room) -> None:
    """No further try by itself (I20); the owner redelivers it with the same id."""
    one = await ended(room)
    assert await defer(room, one, tries=1, dead=True) == "dead"
    kept = await room.kept(one)
    assert (kept.head.callback, kept.words[-1]) == (Delivery.DEAD, "callback_dead")
    assert [delivery for delivery, _ in await room.store.dead(NS, 10)] == [f"{one}.1.callback"]
    assert (await room.claim()).works == []
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "due"
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "due"
    assert (await room.kept(one)).words[-1] == "redelivered"
    assert await room.store.dead(NS, 10) == []
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.callback_tries) == (one, 2)
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "same"


async def test_a_dead_letter_outlives_a_short_retention(room: Room) -> None:
    """P71: it died after its operation's retention was over; it is kept for 72 h, then all of it is gone."""
    one = await room.accepted(callback=2, retention_ms=1)
    await room.succeed(one)
    await room.passed((await room.kept(one)).head.closed_at + 2)
    await room.store.defer(one, 1, Kind.CALLBACK, tries=1, delay_ms=1, dead=True, detail="404")
    kept = await room.kept(one)
    assert (await room.claim()).next_at_ms == kept.head.callback_at + LIMITS["dead_ms"]
    assert [found for found, _ in await room.store.dead(NS, 10)] == [f"{one}.1.callback"]
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "due"
    (work,) = await room.claimed()
    await room.store.delivered(one, 1, Kind.CALLBACK)
    await room.claim()
    assert work.id not in (await room.snapshot()).operations


async def test_a_delivered_callback_can_be_sent_again(room: Room) -> None:
    """The receiver lost it; the owner asks for it again."""
    one = await ended(room)
    await room.store.delivered(one, 1, Kind.CALLBACK)
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, NS) == "due"
    (work,) = await room.claimed()
    assert work.extra == RESULT


async def test_a_late_delivery_revives_a_dead_letter(room: Room) -> None:
    """The reply came after the burial: the receiver has it, so it is no longer listed as dead."""
    one = await ended(room)
    await defer(room, one, tries=1, dead=True)
    await room.store.delivered(one, 1, Kind.CALLBACK)
    assert (await room.kept(one)).head.callback == Delivery.DELIVERED


@pytest.mark.parametrize("kind", [Kind.START, Kind.CANCEL, Kind.CALLBACK])
async def test_what_was_never_owed_is_not_redelivered(room: Room, kind: Kind) -> None:
    """A start has its own way to be repeated (a new attempt); a cancel or callback must have been owed."""
    one = await room.accepted()
    await room.started(one)
    before = await room.kept(one)
    assert await room.store.redeliver(one, 1, kind, NS) == "not_owed"
    if kind is Kind.START:
        await room.store.delivered(one, 1, kind)
        assert await room.store.defer(one, 1, kind, tries=1, delay_ms=1, dead=True, detail="") == "not_owed"
    assert await room.kept(one) == before


async def test_redelivery_is_the_owners_right(room: Room) -> None:
    """Another namespace, another run, another id: unknown."""
    one = await ended(room)
    assert await room.store.redeliver(one, 1, Kind.CALLBACK, "others") == "unknown"
    assert await room.store.redeliver(one, 2, Kind.CALLBACK, NS) == "unknown"
    assert await room.store.redeliver("00-nobody", 1, Kind.CALLBACK, NS) == "unknown"


@pytest.mark.parametrize(
    "end", [Event.SUCCEED, Event.FAIL, Event.CANCEL, Event.TIME_OUT, Event.EXHAUST, Event.WITHDRAW]
)
async def test_every_end_owes_the_callback(room: Room, end: Event) -> None:
    """Whatever ended it, and whoever: the caller hears of it."""
    one = await room.accepted(
        callback=1, attempts_max=1, close_ms=1 if end is Event.TIME_OUT else 0,
        blocked="no_instance" if end is Event.WITHDRAW else "",
    )  # fmt: skip
    if end in (Event.SUCCEED, Event.FAIL, Event.CANCEL):
        await room.store.complete(one, 1, 1, end, RESULT, session=G1)
    elif end is Event.TIME_OUT:
        assert [work.kind for work in await room.claimed()] == [Kind.CALLBACK]
    elif end is Event.EXHAUST:
        await room.retry(one)
        assert [work.kind for work in await room.claimed()] == [Kind.CALLBACK]
    else:
        moved = await room.cancel(one)
        assert moved.work is not None
        assert moved.work.kind is Kind.CALLBACK
    kept = await room.kept(one)
    assert kept.state.terminal
    assert kept.head.callback == Delivery.LEASED


async def test_deliveries_are_listed_with_their_state(room: Room) -> None:
    """What an operation owes, for lists: kind, state, tries."""
    one = await room.accepted(callback=1)
    await room.started(one)
    await room.cancel(one)
    await room.report_canceled(one)
    record = await room.store.read(one)
    assert record is not None
    assert record.state is State.CANCELED
    assert [(kind, state, tries) for kind, state, tries, _ in deliveries(record)] == [
        (Kind.START, Delivery.DELIVERED, 1), (Kind.CANCEL, Delivery.DROPPED, 1), (Kind.CALLBACK, Delivery.LEASED, 1)
    ]  # fmt: skip
