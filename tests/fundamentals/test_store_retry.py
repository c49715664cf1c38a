"""Attempts: back-off, exhaustion, and giving an attempt back that reached nobody."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, State
from mesh.store.layout import decode_outcome
from mesh.store.verbs import Completion
from tests.model.fixtures import ENDPOINT, G1, G2, Room


async def test_a_failed_attempt_backs_off(room: Room) -> None:
    """The start is due again after the delay, and until then nobody holds the operation."""
    one = await room.accepted()
    assert (await room.retry(one, delay_ms=60_000)).verdict == "backing_off"
    kept = await room.kept(one)
    assert (kept.state, kept.head.start, kept.head.owner) == (State.BACKING_OFF, Delivery.DUE, "")
    assert kept.words == ["accepted", "dispatched", "attempt_failed"]
    assert kept.events[-1].detail == "503"
    assert (await room.claim()).works == []


async def test_the_next_attempt_is_leased_by_whoever_claims_it(room: Room) -> None:
    """Attempt 2 carries the same input; any gateway may take it."""
    one = await room.accepted()
    await room.retry(one, delay_ms=1)
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt, work.head.owner, work.extra) == (one, 2, G2, b'{"n":1}')
    assert await room.state(one) is State.SCHEDULED


async def test_a_retry_counts_once(room: Room) -> None:
    """Sent again after a lost reply, or told by an attempt that is no longer current: nothing changes."""
    one = await room.accepted()
    await room.retry(one, delay_ms=1)
    before = await room.kept(one)
    assert (await room.retry(one, delay_ms=1)).verdict == "same"
    assert await room.kept(one) == before
    await room.claimed()
    before = await room.kept(one)
    assert (await room.retry(one, attempt=1)).verdict == "same"
    assert await room.kept(one) == before
    assert (await room.retry("00-nobody")).verdict == "unknown"


async def test_without_an_attempt_left_it_fails(room: Room) -> None:
    """The last failure's cause is the outcome; the start is no longer owed."""
    one = await room.accepted(attempts_max=2)
    await room.retry(one, delay_ms=1)
    await room.claimed()
    assert (await room.retry(one, attempt=2)).verdict == "exhausted"
    kept = await room.kept(one)
    assert (kept.state, kept.head.start) == (State.FAILED, Delivery.DROPPED)
    assert kept.words[-2:] == ["attempt_failed", "failed"]
    assert kept.events[-1].detail == decode_outcome(kept.fields["r"]).reason == "attempts_exhausted"


async def test_a_retry_after_the_end_changes_nothing(room: Room) -> None:
    """The completion by token came first; the timeout of the request is booked later."""
    one = await room.accepted()
    await room.succeed(one)
    before = await room.kept(one)
    assert (await room.retry(one)).verdict == "same"
    assert (await room.store.release(one, 1, 1, "unreachable")).verdict == "same"
    assert await room.kept(one) == before


async def test_a_release_gives_the_attempt_back(room: Room) -> None:
    """It surely reached nobody, so it does not count (P93); the operation waits in line with the reason."""
    one = await room.accepted(attempts_max=1)
    assert (await room.store.release(one, 1, 1, "unreachable")).verdict == "waiting"
    kept = await room.kept(one)
    assert (kept.state, kept.head.attempt, kept.head.blocked) == (State.SCHEDULED, 0, "unreachable")
    assert kept.words == ["accepted", "dispatched", "blocked"]
    works, stopped = await room.store.unblock(ENDPOINT, G2, 10)
    assert [(work.id, work.head.attempt) for work in works] == [(one, 1)]
    assert stopped == ""


async def test_a_release_counts_once(room: Room) -> None:
    """Sent again right away, it finds nothing leased."""
    one = await room.accepted()
    await room.store.release(one, 1, 1, "unreachable", session=G1)
    before = await room.kept(one)
    assert (await room.store.release(one, 1, 1, "unreachable", session=G1)).verdict == "same"
    assert await room.kept(one) == before
    assert (await room.store.release("00-nobody", 1, 1, "unreachable", session=G1)).verdict == "unknown"


async def test_a_release_sent_again_spares_the_attempt_of_another_gateway(room: Room) -> None:
    """The repeat must not give back what the other gateway has just sent.

    A released attempt's number is used again, so the number alone does not tell whose attempt it is.
    """
    one = await room.accepted()
    await room.store.release(one, 1, 1, "unreachable", session=G1)
    works, _ = await room.store.unblock(ENDPOINT, G2, 10)
    assert [work.head.attempt for work in works] == [1]
    assert (await room.store.release(one, 1, 1, "unreachable", session=G1)).verdict == "same"
    kept = await room.kept(one)
    assert (kept.head.start, kept.head.owner) == (Delivery.LEASED, G2)


async def test_a_lost_attempt_is_spent(room: Room) -> None:
    """Nobody knows whether the agent got it, so it counts, and the last one lost exhausts the operation."""
    one = await room.accepted(attempts_max=1, lease_ms=1)
    kept = await room.ended_by_timer(one)
    assert kept.state is State.FAILED
    assert kept.words == ["accepted", "dispatched", "attempt_lost", "failed"]
    assert kept.events[2].detail == "request_lease"


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_201_of_a_lost_attempt_still_counts_while_no_other_was_sent(room: Room, blocked: bool) -> None:
    """The gateway stalled, its attempt was taken away, and then its 201 arrives: the agent does work on it.

    It leaves the waiting line, if it got there, and is never dispatched beside itself.
    """
    one = await room.accepted()
    await room.died(G1)
    await room.store.beat(G2)
    if blocked:
        await room.catalog.endpoint_pause("work", "default", paused=True)
        await room.claim(G2)
        assert (await room.kept(one)).head.blocked == "paused"
        await room.catalog.endpoint_pause("work", "default", paused=False)
    assert (await room.started(one)).verdict == "started"
    kept = await room.kept(one)
    assert (kept.state, kept.head.blocked, kept.head.attempt) == (State.STARTED, "", 1)
    assert (await room.store.unblock(ENDPOINT, G2, 10))[0] == []
    assert (await room.claim(G2)).works == []
    assert (await room.succeed(one)).verdict is Completion.DONE
