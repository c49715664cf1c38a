"""Sessions: leases belong to a gateway's session, so a dead gateway's work moves within seconds (P114)."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, Kind, State
from mesh.store.library import LIMITS
from mesh.store.starting import NoSession
from mesh.store.verbs import KeyReused
from tests.model.fixtures import ENDPOINT, G1, G2, Room


async def test_a_dead_gateways_work_is_taken_over(room: Room) -> None:
    """Whatever the request timeout: the start is sent again with the next attempt, by somebody else."""
    one = await room.accepted(lease_ms=3_600_000)
    await room.died(G1)
    beat = await room.store.beat(G2)
    assert (beat.alive, beat.sessions) == (True, 1)
    kept = await room.kept(one)
    assert (kept.state, kept.head.start, kept.words[-1]) == (State.SCHEDULED, Delivery.DUE, "attempt_lost")
    assert kept.events[-1].detail == "gateway"
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt) == (one, 2)


async def test_started_work_does_not_depend_on_its_gateway(room: Room) -> None:
    """After the 201 nothing is leased: nothing happens to it when the gateway dies."""
    one = await room.accepted()
    await room.started(one)
    before = await room.kept(one)
    await room.died(G1)
    await room.store.beat(G2)
    assert await room.kept(one) == before


async def test_cancels_and_callbacks_are_taken_over_too(room: Room) -> None:
    """They are due at once, with the next try's number."""
    canceling, ended = await room.accepted(), await room.accepted(callback=1)
    await room.started(canceling)
    await room.cancel(canceling)
    await room.succeed(ended)
    await room.died(G1)
    await room.store.beat(G2)
    works = await room.claimed(session=G2, count=2)
    assert {(work.id, work.kind) for work in works} == {(canceling, Kind.CANCEL), (ended, Kind.CALLBACK)}
    assert {work.head.cancel_tries or work.head.callback_tries for work in works} == {2}


async def test_a_session_that_was_taken_for_dead_is_told_so(room: Room) -> None:
    """It joins anew; until then it neither claims nor accepts."""
    await room.died(G1)
    await room.store.beat(G2)
    assert (await room.store.beat(G1)).alive is False
    with pytest.raises(NoSession):
        await room.claim(G1)
    with pytest.raises(NoSession):
        await room.store.unblock(ENDPOINT, G1, 10)
    assert (await room.store.beat(G1, join=True)).alive is True
    assert (await room.claim(G1)).works == []


async def test_a_live_session_is_left_alone(room: Room) -> None:
    """Its beat is fresh: nothing moves."""
    one = await room.accepted()
    before = await room.kept(one)
    assert (await room.store.beat(G2)).sessions == 2
    assert await room.kept(one) == before


async def test_a_restarted_gateway_reclaims_its_own_at_once(room: Room) -> None:
    """`replaces` names the earlier sessions of the same gateway, which are surely dead; others stay."""
    mine, others = await room.accepted(), await room.accepted(session=G2)
    beat = await room.store.beat("g1.s-2", join=True, replaces="g1.")
    assert beat.sessions == 2
    assert (await room.kept(mine)).head.owner == ""
    assert (await room.kept(others)).head.owner == G2
    assert [work.id for work in await room.claimed(session="g1.s-2")] == [mine]


async def test_nobody_is_called_dead_because_the_store_was_away(room: Room) -> None:
    """It was stopped for a while: all beats look old to whoever comes back first, and everybody gets the time anew."""
    one = await room.accepted(session=G2)
    await room.died(G1)
    await room.died(G2)
    for _ in range(2):
        assert (await room.store.beat(G1)).sessions == 2
    assert (await room.kept(one)).head.owner == G2
    await room.died(G2)
    assert (await room.store.beat(G1)).sessions == 1
    assert (await room.kept(one)).head.owner == ""


async def test_nor_by_a_newcomer(room: Room) -> None:
    """A gateway that starts together with the store's return, before the others reached it again."""
    one = await room.accepted()
    await room.died(G1)
    await room.died(G2)
    assert (await room.store.beat("g3.s-1", join=True)).sessions == 3
    assert (await room.kept(one)).head.owner == G1


async def test_a_takeover_is_bounded_per_beat(room: Room) -> None:
    """A dead session with very much work is emptied over several beats, and stays listed until it is empty."""
    count = LIMITS["takeover"] + 5
    for number in range(count):
        await room.accepted()
        if number % 50 == 0:
            await room.store.beat(G2)  # a gap in the beats would look like an outage, which forgives everybody
    await room.died(G1)
    assert (await room.store.beat(G2)).left == 5
    snapshot = await room.snapshot()
    assert len(snapshot.timers[G1]) == 5
    assert snapshot.sessions[G1] == 0
    assert (await room.store.beat(G2)).left == 0
    snapshot = await room.snapshot()
    assert G1 not in snapshot.timers
    assert G1 not in snapshot.sessions


async def test_flushed_functions_are_put_back_and_refusals_stay_refusals(room: Room) -> None:
    """Somebody flushed them: the call that noticed is repeated, and means what it would have meant."""
    one = await room.accepted("key")
    await room.link.call("FUNCTION", "FLUSH")
    assert isinstance(await room.start(room.order("key", "other content")), KeyReused)
    await room.link.call("FUNCTION", "FLUSH")
    assert (await room.retry(one)).verdict == "backing_off"
    await room.link.call("FUNCTION", "FLUSH")
    assert (await room.retry("00-nobody")).verdict == "unknown"


async def test_leaving_hands_everything_back(room: Room) -> None:
    """A gateway that drains: what it holds is due for the others, and its name is off the list."""
    ids = {await room.accepted(), await room.accepted(callback=1)}
    await room.succeed(max(ids), answered=False)
    assert await room.store.leave(G1) == 0
    snapshot = await room.snapshot()
    assert G1 not in snapshot.sessions
    assert {work.id for work in await room.claimed(session=G2, count=1)} <= ids
    assert await room.store.leave(G1) == 0


async def test_leases_that_nobody_works_on_are_handed_back(room: Room) -> None:
    """The reply that leased them was lost; the gateway finds them among what it holds."""
    lost, known = await room.accepted(), await room.accepted()
    assert set(await room.store.held(G1, 10)) == {lost, known}
    await room.store.hand_back(G1, [lost])
    assert await room.store.held(G1, 10) == [known]
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt) == (lost, 2)


async def test_handing_back_what_is_not_held_changes_nothing(room: Room) -> None:
    """Another session's lease, an ended operation, an unknown id; the same list twice."""
    others, ended = await room.accepted(session=G2), await room.accepted()
    await room.succeed(ended)
    before = await room.snapshot()
    for _ in range(2):
        await room.store.hand_back(G1, [others, ended, "00-nobody"])
    assert await room.snapshot() == before


async def test_being_alone_is_known(room: Room) -> None:
    """No other gateway lives that could wait for a message about an end."""
    assert room.store.alone is False
    await room.store.leave(G2)
    await room.store.beat(G1)
    assert room.store.alone is True
