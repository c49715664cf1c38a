"""How operations end: the first outcome wins, duplicates are recognised, superseded attempts are fenced."""

from __future__ import annotations

import pytest

from mesh.machine import Delivery, Event, State
from mesh.store.layout import decode_outcome
from mesh.store.verbs import Completion, Task
from tests.model.fixtures import FAILURE, G1, G2, OTHER_RESULT, RESULT, Room, eventually


async def lose_first_attempt(room: Room, one: str) -> None:
    """Attempt 1 is given up (its gateway died) and attempt 2 is out at the other gateway."""
    await room.died(G1)
    await room.store.beat(G2)
    await room.store.beat(G1, join=True)
    (work,) = await room.claimed(session=G2)
    assert (work.id, work.head.attempt) == (one, 2)


async def test_an_outcome_ends_the_operation(room: Room) -> None:
    """State, outcome, time and the end of the lease are one transition."""
    one = await room.accepted("key-1")
    completed = await room.succeed(one)
    assert (completed.verdict, completed.seq, completed.callback) == (Completion.DONE, 3, None)
    kept = await room.kept(one)
    assert (kept.state, kept.head.start, kept.head.owner) == (State.SUCCEEDED, Delivery.DELIVERED, "")
    assert (kept.fields["r"], kept.head.closed_at) == (RESULT, completed.at_ms)
    assert kept.words == ["accepted", "dispatched", "succeeded"]


async def test_an_equal_outcome_is_a_duplicate(room: Room) -> None:
    """I16: same answer, nothing changes."""
    one = await room.accepted()
    first = await room.succeed(one)
    before = await room.kept(one)
    again = await room.succeed(one)
    assert (again.verdict, again.at_ms, again.seq) == (Completion.SAME, first.at_ms, first.seq)
    assert await room.kept(one) == before


@pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.CANCEL])
async def test_another_outcome_conflicts_and_the_first_stands(room: Room, event: Event) -> None:
    """I14: other bytes or another kind of end are a conflict; the record does not move."""
    one = await room.accepted()
    await room.succeed(one)
    before = await room.kept(one)
    completed = await room.store.complete(one, 1, 1, event, OTHER_RESULT, session=G1)
    assert completed.verdict is Completion.OTHER
    assert await room.kept(one) == before


async def test_failure_and_cancellation_are_outcomes_too(room: Room) -> None:
    """A handler's definite failure and its `canceled` end the operation; the start was delivered in each case."""
    failed, canceled = await room.accepted(), await room.accepted()
    await room.fail(failed)
    await room.report_canceled(canceled)
    assert [await room.state(failed), await room.state(canceled)] == [State.FAILED, State.CANCELED]
    for one in (failed, canceled):
        assert (await room.kept(one)).head.start == Delivery.DELIVERED


async def test_a_completion_may_come_before_the_201(room: Room) -> None:
    """I17: the outcome is kept although the start request is still open, and the late 201 changes nothing."""
    one = await room.accepted()
    assert (await room.succeed(one)).verdict is Completion.DONE
    before = await room.kept(one)
    moved = await room.started(one)
    assert (moved.verdict, moved.work) == ("same", None)
    assert await room.kept(one) == before


async def test_the_201_starts_the_operation(room: Room) -> None:
    """The lease ends, the agent's token is kept, and the operation waits for its completion without an owner."""
    one = await room.accepted()
    assert (await room.started(one)).verdict == "started"
    kept = await room.kept(one)
    assert (kept.state, kept.head.start, kept.head.owner) == (State.STARTED, Delivery.DELIVERED, "")
    assert kept.fields["t"] == b"token-1"
    assert (await room.started(one)).verdict == "same"
    assert (await room.succeed(one)).verdict is Completion.DONE


async def test_a_failure_of_a_superseded_attempt_is_dropped(room: Room) -> None:
    """Attempt 2 is under way, so attempt 1's failure says nothing about the operation (P54)."""
    one = await room.accepted()
    await lose_first_attempt(room, one)
    before = await room.kept(one)
    assert (await room.fail(one, attempt=1)).verdict is Completion.DROPPED
    assert (await room.report_canceled(one, attempt=1)).verdict is Completion.DROPPED
    assert await room.kept(one) == before


async def test_a_success_of_a_superseded_attempt_is_accepted(room: Room) -> None:
    """Unleased work: any attempt may deliver the result, the first wins; the second gets to know it."""
    one = await room.accepted()
    await lose_first_attempt(room, one)
    assert (await room.succeed(one, attempt=1)).verdict is Completion.DONE
    assert (await room.succeed(one, attempt=2)).verdict is Completion.SAME
    assert (await room.fail(one, attempt=2)).verdict is Completion.OTHER
    assert await room.state(one) is State.SUCCEEDED


async def test_a_superseded_attempt_that_was_asked_to_stop_may_report_it(room: Room) -> None:
    """The caller wanted the cancel, so `canceled` is welcome from whichever attempt."""
    one = await room.accepted()
    await lose_first_attempt(room, one)
    await room.cancel(one)
    assert (await room.report_canceled(one, attempt=1)).verdict is Completion.DONE
    assert await room.state(one) is State.CANCELED


async def test_leased_attempts_are_fenced_once_superseded(room: Room) -> None:
    """Attempt 1 ran under a heartbeat lease and lost it: whatever it says now is `lease_lost` (P55, I10).

    It is shown once. Also while attempt 2, which is out, has not shown yet whether it heartbeats.
    """
    one = await room.accepted()
    await room.started(one, beat_ms=1)

    async def again() -> bool:
        return any(work.head.attempt == 2 for work in (await room.claim()).works)

    await eventually(again)
    before = await room.kept(one)
    assert (await room.succeed(one, attempt=1)).verdict is Completion.LEASE_LOST
    assert (await room.fail(one, attempt=1)).verdict is Completion.LEASE_LOST
    assert await room.store.heartbeat([Task(one, 1, 1, 1_000)]) == ["lost"]
    kept = await room.kept(one)
    assert kept.words == [*before.words, "refused"]
    assert (kept.events[-1].attempt, kept.events[-1].detail) == (1, "complete")
    assert (kept.state, kept.head.attempt, kept.head.start_at) == (before.state, 2, before.head.start_at)
    assert (await room.succeed(one, attempt=2)).verdict is Completion.DONE


async def test_the_first_heartbeat_makes_an_attempt_leased(room: Room) -> None:
    """Attempt 1 was unleased; attempt 2 heartbeats, and from then on attempt 1 is fenced out."""
    one = await room.accepted()
    await lose_first_attempt(room, one)
    assert await room.store.heartbeat([Task(one, 1, 2, 60_000)]) == ["ok"]
    assert (await room.succeed(one, attempt=1)).verdict is Completion.LEASE_LOST
    assert (await room.succeed(one, attempt=2)).verdict is Completion.DONE


async def test_unknown_operations_and_other_runs_are_told_apart(room: Room) -> None:
    """A token of another run is stale; an id that is not there is unknown."""
    one = await room.accepted()
    stale = await room.store.complete(one, 2, 1, Event.SUCCEED, RESULT, session=G1)
    unknown = await room.store.complete("00-nobody", 1, 1, Event.SUCCEED, RESULT, session=G1)
    assert (stale.verdict, unknown.verdict) == (Completion.STALE_RUN, Completion.UNKNOWN)
    assert (await room.started("00-nobody")).verdict == "unknown"
    assert await room.state(one) is State.SCHEDULED


async def test_a_late_failure_after_exhaustion_conflicts(room: Room) -> None:
    """The mesh ended it with its own outcome; the agent's other bytes do not replace it."""
    one = await room.accepted(attempts_max=1)
    await room.retry(one)
    assert (await room.fail(one)).verdict is Completion.OTHER
    record = await room.store.read(one)
    assert record is not None
    assert record.outcome is not None
    assert record.outcome.reason == "attempts_exhausted"


async def test_an_outcome_while_backing_off_ends_the_wait(room: Room) -> None:
    """Attempt 1 timed out here and completed there: the retry is no longer owed."""
    one = await room.accepted()
    await room.retry(one)
    assert (await room.succeed(one)).verdict is Completion.DONE
    assert (await room.claim()).works == []
    assert decode_outcome((await room.kept(one)).fields["r"]).body == b'{"ok":true}'
    assert (await room.fail(one, outcome=FAILURE)).verdict is Completion.OTHER
