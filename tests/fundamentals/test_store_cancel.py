"""Cancel, in every state (P31): done at once when nothing is out there, else remembered and sent later."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, Kind, State
from mesh.store.layout import decode_outcome
from mesh.store.verbs import Completion
from tests.model.fixtures import G1, G2, Room, eventually


async def test_before_the_first_dispatch_it_is_canceled_in_that_step(room: Room) -> None:
    """Nothing is out there, so nobody needs to be asked; it leaves the waiting line."""
    one = await room.accepted(blocked="no_instance")
    assert (await room.cancel(one)).verdict == "canceled"
    kept = await room.kept(one)
    assert (kept.state, kept.head.start) == (State.CANCELED, Delivery.DROPPED)
    assert kept.words == ["accepted", "blocked", "cancel_requested", "canceled"]
    assert decode_outcome(kept.fields["r"]).reason == "canceled_before_start"


async def test_while_backing_off_it_is_canceled_in_that_step(room: Room) -> None:
    """The attempt failed and the next one is not out yet."""
    one = await room.accepted()
    await room.retry(one)
    assert (await room.cancel(one)).verdict == "canceled"
    assert await room.state(one) is State.CANCELED


async def test_in_flight_it_is_remembered(room: Room) -> None:
    """The agent's token is not known yet. A cancel is a request, never by itself the end (I18)."""
    one = await room.accepted()
    moved = await room.cancel(one)
    assert (moved.verdict, moved.work) == ("requested", None)
    kept = await room.kept(one)
    assert (kept.state, kept.head.cancel_asked, kept.head.cancel) == (State.SCHEDULED, 1, Delivery.NONE)


async def test_the_201_of_an_operation_to_cancel_brings_the_cancel_work(room: Room) -> None:
    """As soon as the token is known the cancel is leased to the gateway that got the 201, in the same call."""
    one = await room.accepted()
    await room.cancel(one, session=G2)
    moved = await room.started(one)
    assert moved.verdict == "started"
    assert moved.work is not None
    assert (moved.work.kind, moved.work.extra, moved.work.head.cancel_tries) == (Kind.CANCEL, b"token-1", 1)
    assert (await room.kept(one)).head.owner == G1


async def test_a_retry_after_the_cancel_ends_it(room: Room) -> None:
    """The attempt in flight failed, and nothing is sent again: canceled."""
    one = await room.accepted()
    await room.cancel(one)
    assert (await room.retry(one)).verdict == "canceled"
    kept = await room.kept(one)
    assert kept.state is State.CANCELED
    assert kept.words[-3:] == ["cancel_requested", "attempt_failed", "canceled"]


async def test_a_release_after_the_cancel_ends_it(room: Room) -> None:
    """The attempt reached nobody: canceled instead of waiting."""
    one = await room.accepted()
    await room.cancel(one)
    assert (await room.store.release(one, 1, 1, "unreachable")).verdict == "canceled"
    assert await room.state(one) is State.CANCELED


async def test_a_lost_attempt_after_the_cancel_ends_it(room: Room) -> None:
    """The gateway that had the attempt died: its successor cancels instead of dispatching again."""
    one = await room.accepted()
    await room.cancel(one)
    await room.died(G1)
    await room.store.beat(G2)
    kept = await room.ended_by_timer(one, session=G2)
    assert kept.state is State.CANCELED
    assert kept.words[-2:] == ["attempt_lost", "canceled"]


async def test_while_started_the_cancel_is_leased_to_the_asking_gateway(room: Room) -> None:
    """The token is known, so it can be sent now; the operation goes on until the agent reports."""
    one = await room.accepted()
    await room.started(one)
    moved = await room.cancel(one, session=G2)
    assert moved.verdict == "requested"
    assert moved.work is not None
    assert (moved.work.kind, moved.work.extra) == (Kind.CANCEL, b"token-1")
    kept = await room.kept(one)
    assert (kept.state, kept.head.cancel, kept.head.owner) == (State.STARTED, Delivery.LEASED, G2)
    await room.store.delivered(one, 1, Kind.CANCEL)
    kept = await room.kept(one)
    assert (kept.state, kept.head.cancel, kept.head.owner) == (State.STARTED, Delivery.DELIVERED, "")
    assert (await room.report_canceled(one)).verdict is Completion.DONE
    assert (await room.kept(one)).words[-2:] == ["cancel_delivered", "canceled"]


async def test_an_agent_may_finish_in_spite_of_the_cancel(room: Room) -> None:
    """Whatever the agent reports first stands; the cancel still owed is dropped."""
    one = await room.accepted()
    await room.started(one)
    await room.cancel(one)
    assert (await room.succeed(one)).verdict is Completion.DONE
    kept = await room.kept(one)
    assert (kept.state, kept.head.cancel) == (State.SUCCEEDED, Delivery.DROPPED)


@pytest.mark.parametrize("state", ["in flight", "started", "canceled"])
async def test_repeats_change_nothing(room: Room, state: str) -> None:
    """202 again, no second event, no second delivery (I18)."""
    one = await room.accepted(blocked="no_instance" if state == "canceled" else "")
    if state == "started":
        await room.started(one)
    await room.cancel(one)
    before = await room.kept(one)
    assert (await room.cancel(one)).verdict == "same"
    assert await room.kept(one) == before


@pytest.mark.parametrize("end", ["succeeded", "failed"])
async def test_after_the_end_it_changes_nothing(room: Room, end: str) -> None:
    """Neither state nor history."""
    one = await room.accepted()
    await (room.succeed(one) if end == "succeeded" else room.fail(one))
    before = await room.kept(one)
    assert (await room.cancel(one)).verdict == "same"
    assert await room.kept(one) == before


async def test_another_namespace_does_not_see_the_operation(room: Room) -> None:
    """The same answer as for an id that does not exist."""
    one = await room.accepted()
    assert await room.store.cancel(one, "others", G1) is None
    assert await room.store.cancel("00-nobody", "others", G1) is None
    assert (await room.kept(one)).head.cancel_asked == 0


async def test_a_cancel_that_cannot_be_told_is_tried_again_and_then_dead(room: Room) -> None:
    """Back-off like any delivery, then visible as dead; the operation itself goes on."""
    one = await room.accepted()
    await room.started(one)
    await room.cancel(one)
    deferred = await room.store.defer(one, 1, Kind.CANCEL, tries=1, delay_ms=1, dead=False, detail="503")
    assert deferred == "deferred"
    (work,) = await room.claimed()
    assert (work.kind, work.head.cancel_tries) == (Kind.CANCEL, 2)
    stale = await room.store.defer(one, 1, Kind.CANCEL, tries=1, delay_ms=1, dead=True, detail="503")
    assert stale == "same"
    assert await room.store.defer(one, 1, Kind.CANCEL, tries=2, delay_ms=1, dead=True, detail="404") == "dead"
    kept = await room.kept(one)
    assert (kept.state, kept.words[-1]) == (State.STARTED, "cancel_failed")
    assert [delivery for delivery, _ in await room.store.dead("default", 10)] == [f"{one}.1.cancel"]


async def test_the_agent_of_a_timed_out_operation_is_told_to_stop(room: Room) -> None:
    """Best effort (P102): a cancel is owed although no caller asked for it."""
    one = await room.accepted(run_ms=1)
    await room.started(one)

    async def told() -> bool:
        return [work.kind for work in (await room.claim()).works] == [Kind.CANCEL]

    await eventually(told)
    kept = await room.kept(one)
    assert (kept.state, kept.head.cancel) == (State.TIMED_OUT, Delivery.LEASED)
    await room.store.delivered(one, 1, Kind.CANCEL)
    assert (await room.kept(one)).words[-2:] == ["timed_out", "cancel_delivered"]


async def test_a_late_201_of_an_ended_operation_is_answered_with_a_cancel(room: Room) -> None:
    """It timed out while its start was in flight; now somebody works on it for nothing, so he is told, once."""
    one = await room.accepted(close_ms=1)
    await room.ended_by_timer(one)
    moved = await room.started(one)
    assert moved.verdict == "same"
    assert moved.work is not None
    assert (moved.work.kind, moved.work.extra) == (Kind.CANCEL, b"token-1")
    assert (await room.started(one)).work is None
    assert await room.state(one) is State.TIMED_OUT
