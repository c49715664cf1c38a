"""Attempts that agents fetch: handed out at the start or from the line, leased, answered, given back, taken away."""

from __future__ import annotations

from asyncio import gather
from typing import Any

import pytest

from mesh.machine import Delivery, Event, State
from mesh.store.layout import decode_outcome
from mesh.store.pulls import Ended, PullStore, Released, Retried, Taken
from mesh.store.subscriber import Subscriber
from mesh.store.verbs import Accepted, Completed, Completion, Pulled, Seat, Task
from tests.model.fixtures import ENDPOINT, FAILURE, G1, GIVEN_UP, NS, OTHER_RESULT, RESULT, Room, eventually

A, B = "agent-a", "agent-b"
LEASE_MS = 60_000


@pytest.fixture
async def pulled(room: Room) -> Room:
    """The endpoint is one that agents fetch from."""
    await room.endpoint(pull=True)
    return room


async def fetched(room: Room, instance: str = A, lease_ms: int = LEASE_MS, **fields: Any) -> str:
    """An operation whose first attempt `instance` got as it was accepted."""
    order = room.order(**fields)
    reply = await room.start(order, seat=PullStore.seat(instance, lease_ms))
    assert isinstance(reply, Accepted)
    assert (reply.attempt, reply.blocked, reply.fetched) == (1, "", True)
    return order.id


async def pull(room: Room, *seats: tuple[str, int], services: tuple[str, ...] = (), skip: int = 0) -> Pulled:
    wanted = [Seat(instance, count, LEASE_MS) for instance, count in seats or [(A, 64)]]
    return await room.pulls.pull(ENDPOINT, wanted, services, skip=skip)


def ids(pulled: Pulled) -> list[tuple[str, str]]:
    return [(work.id, instance) for work, instance in pulled.works]


async def answer(room: Room, *answers: Ended | Retried | Released) -> list[Completed | Taken]:
    return await room.pulls.answers(answers, session=G1, alone=False)


def retried(one: str, attempt: int = 1, least_ms: int = 0) -> Retried:
    return Retried(one, 1, attempt, "INTERNAL: no", GIVEN_UP, least_ms, 0.0)


# Handing out


async def test_a_start_is_handed_to_the_poller_in_the_same_step(pulled: Room) -> None:
    """P281: dispatched, started and leased at once; no session holds it, its lease is its timer."""
    one = await fetched(pulled, run_ms=90_000)
    kept = await pulled.kept(one)
    head = kept.head
    assert (kept.state, head.attempt, head.instance, head.owner) == (State.STARTED, 1, A, "")
    assert (head.beat_ms, head.beat_by) == (LEASE_MS, head.created_at + LEASE_MS)
    assert head.finish_by == head.created_at + 90_000
    assert kept.words == ["accepted", "started"]
    assert kept.events[1].instance == A
    assert (await pulled.claim()).works == []


async def test_without_a_poller_it_waits_in_line(pulled: Room) -> None:
    """P282: nothing is leased to the gateway, whatever it thought of the endpoint."""
    order = pulled.order()
    assert await pulled.start(order) == Accepted((await pulled.kept(order.id)).head.created_at, 0, "busy")
    other = await pulled.accepted(blocked="no_instance")
    assert [(await pulled.kept(one)).head.blocked for one in (order.id, other)] == ["busy", "no_instance"]
    assert (await pulled.claim()).works == []
    assert (await pulled.store.unblock(ENDPOINT, G1, 10)) == ([], "busy")


async def test_a_seat_means_nothing_to_an_endpoint_that_is_pushed_to(room: Room) -> None:
    """The gateway's view was old: the attempt is its session's, to be sent."""
    order = room.order()
    reply = await room.start(order, seat=PullStore.seat(A, LEASE_MS))
    assert isinstance(reply, Accepted)
    assert (reply.attempt, reply.fetched) == (1, False)
    assert (await room.kept(order.id)).head.owner == G1
    assert (await room.pulls.pull(ENDPOINT, [Seat(A, 1, LEASE_MS)], ())).stopped == "not_pull"


async def test_the_same_start_again_is_answered_alike(pulled: Room) -> None:
    """Sent again after a lost reply: the attempt is still that poller's, and nobody else's."""
    order = pulled.order("k1")
    seat = PullStore.seat(A, LEASE_MS)
    first = await pulled.start(order, seat=seat)
    assert await pulled.start(order, seat=seat) == first
    other = await pulled.start(order, seat=PullStore.seat(B, LEASE_MS))
    assert isinstance(other, Accepted)
    assert (other.attempt, other.fetched) == (0, False)
    await answer(pulled, Ended(order.id, 1, 1, Event.SUCCEED, RESULT, answered=True))
    again = await pulled.start(order, seat=seat)
    assert isinstance(again, Accepted)
    assert again.attempt == 0


async def test_the_line_is_handed_out_in_the_order_of_acceptance(pulled: Room) -> None:
    """P283: as many as there are seats, over the pollers in turn, each with its input."""
    waiting = [await pulled.accepted() for _ in range(5)]
    order = sorted(waiting, key=lambda one: (pulled_at[one], one)) if (pulled_at := await _ages(pulled)) else []
    got = await pull(pulled, (A, 2), (B, 1))
    assert [one for one, _ in ids(got)] == order[:3]
    assert sorted(instance for _, instance in ids(got)) == [A, A, B]
    assert (got.stopped, got.more) == ("", True)
    assert all(work.extra == b'{"n":1}' and work.head.state == State.STARTED for work, _ in got.works)
    rest = await pull(pulled)
    assert ([one for one, _ in ids(rest)], rest.more) == (order[3:], False)
    assert ids(await pull(pulled)) == []


async def _ages(room: Room) -> dict[str, int]:
    return {one: kept.head.created_at for one, kept in (await room.snapshot()).operations.items()}


async def test_pollers_at_once_get_each_operation_once(pulled: Room) -> None:
    waiting = {await pulled.accepted() for _ in range(20)}
    replies = await gather(*[pull(pulled, (f"agent-{n}", 3)) for n in range(10)])
    got = [one for reply in replies for one, _ in ids(reply)]
    assert sorted(got) == sorted(waiting)


async def test_only_the_services_asked_for(pulled: Room) -> None:
    """P284: the others keep their place; a long line is seen through in several looks."""
    for service in ("Lint", "Test", "Lint"):
        await pulled.start(pulled.order(), service=service)
    got = await pull(pulled, services=("Test",))
    assert [work.request.service for work, _ in got.works] == ["Test"]
    assert not got.more
    assert [work.request.service for work, _ in (await pull(pulled, services=("None", "Lint"))).works] == ["Lint"] * 2


async def test_a_filter_goes_on_behind_what_it_passed(pulled: Room) -> None:
    for _ in range(300):
        await pulled.start(pulled.order(), service="Lint")
    wanted = pulled.order()
    await pulled.passed((await pulled.kept(next(iter(await _ages(pulled))))).head.created_at + 1)
    await pulled.start(wanted, service="Test")
    first = await pull(pulled, services=("Test",))
    assert (first.works, first.more) == ([], True)
    then = await pull(pulled, services=("Test",), skip=first.skip)
    assert [one for one, _ in ids(then)] == [wanted.id]


async def test_it_goes_back_to_whoever_had_it(pulled: Room) -> None:
    """P285: the instance of the last attempt is preferred, if it has a seat; else anybody gets it."""
    one = await fetched(pulled, B)
    await answer(pulled, Released(one, 1, 1, "stopping"))
    assert ids(await pull(pulled, (A, 1), (B, 1))) == [(one, B)]
    await answer(pulled, Released(one, 1, 2, "stopping"))
    assert ids(await pull(pulled, (A, 1))) == [(one, A)]


async def test_a_poll_without_a_free_seat_moves_nothing(pulled: Room) -> None:
    """It does not even look at the line: nobody is told that it waits for something else."""
    await pulled.accepted(attempts_max=1)
    await pulled.catalog.endpoint_pause("work", NS, paused=True)
    before = await pulled.snapshot()
    assert (await pull(pulled, (A, 0))).stopped == ""
    assert await pulled.snapshot() == before


async def test_limits_and_pause_hold_for_pollers(pulled: Room) -> None:
    """P95, P94: also against a poller that waits when the start comes."""
    await pulled.endpoint(pull=True, max_concurrency=2)
    running = [await fetched(pulled), await fetched(pulled)]
    order = pulled.order()
    late = await pulled.start(order, seat=PullStore.seat(A, LEASE_MS))
    assert isinstance(late, Accepted)
    assert (late.attempt, late.blocked) == (0, "concurrency")
    assert (await pull(pulled)).stopped == "concurrency"
    (done,) = await answer(pulled, Ended(running[0], 1, 1, Event.SUCCEED, RESULT, answered=False))
    assert isinstance(done, Completed)
    assert done.line == ENDPOINT
    await pulled.catalog.endpoint_pause("work", NS, paused=True)
    assert (await pull(pulled)).stopped == "paused"
    assert (await pulled.kept(order.id)).head.blocked == "paused"
    await pulled.catalog.endpoint_pause("work", NS, paused=False)
    assert ids(await pull(pulled)) == [(order.id, A)]


# Leases


async def test_silence_loses_the_attempt_and_the_line_gets_it(pulled: Room) -> None:
    """P286: the next poller has attempt 2; the first one is refused in everything."""
    one = await fetched(pulled, lease_ms=1)

    async def lost() -> bool:
        await pulled.claim()
        return (await pulled.kept(one)).head.blocked == "busy"

    await eventually(lost)
    assert ids(await pull(pulled, (B, 1))) == [(one, B)]
    kept = await pulled.kept(one)
    assert kept.words == ["accepted", "started", "attempt_lost", "blocked", "started"]
    replies = await answer(
        pulled,
        Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False),
        Ended(one, 1, 1, Event.FAIL, FAILURE, answered=False),
        retried(one),
        Released(one, 1, 1, "stopping"),
    )
    assert [reply.verdict for reply in replies] == [Completion.LEASE_LOST, Completion.LEASE_LOST, "lost", "lost"]
    assert await pulled.store.heartbeat([Task(one, 1, 1, 0)]) == ["lost"]
    now = await pulled.kept(one)
    assert now.words == [*kept.words, "refused"]
    assert (now.head.attempt, now.head.beat_by) == (2, kept.head.beat_by)


async def test_a_heartbeat_keeps_it(pulled: Room) -> None:
    one = await fetched(pulled, lease_ms=5_000)
    before = (await pulled.kept(one)).head.beat_by
    await pulled.passed(before - 4_990)
    assert await pulled.store.heartbeat([Task(one, 1, 1, 0)]) == ["ok"]
    assert (await pulled.kept(one)).head.beat_by > before


async def test_a_result_between_two_attempts_counts(pulled: Room) -> None:
    """P54: nobody has it yet, and the work is done."""
    one = await fetched(pulled)
    await answer(pulled, Released(one, 1, 1, "stopping"))
    (done,) = await answer(pulled, Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False))
    assert done.verdict is Completion.DONE
    assert ids(await pull(pulled)) == []


# Answers


async def test_many_answers_in_one_step_each_for_itself(pulled: Room) -> None:
    """P287: a refused one, an unknown one and a repeat keep none of the others from being booked."""
    one, two, three, four = [await fetched(pulled) for _ in range(4)]
    answers = (
        Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False),
        Ended(one, 1, 1, Event.SUCCEED, OTHER_RESULT, answered=False),
        Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False),
        Ended("00-nobody", 1, 1, Event.SUCCEED, RESULT, answered=False),
        Ended(two, 2, 1, Event.SUCCEED, RESULT, answered=False),
        Ended(two, 1, 1, Event.FAIL, FAILURE, answered=False),
        retried(three),
        Released(four, 1, 1, "stopping"),
        retried("00-nobody"),
        Released("00-nobody", 1, 1, "stopping"),
    )
    assert [reply.verdict for reply in await answer(pulled, *answers)] == [
        Completion.DONE, Completion.OTHER, Completion.SAME, Completion.UNKNOWN, Completion.STALE_RUN, Completion.DONE,
        "backing_off", "waiting", "unknown", "unknown",
    ]  # fmt: skip
    states = [await pulled.state(each) for each in (one, two, three, four)]
    assert states == [State.SUCCEEDED, State.FAILED, State.BACKING_OFF, State.SCHEDULED]


async def test_a_record_that_cannot_be_read_spoils_only_its_own_answer(pulled: Room) -> None:
    one, two = await fetched(pulled), await fetched(pulled)
    key = pulled.store.keys.operation(one)
    head = await pulled.link.call("HGET", key, "h")
    await pulled.link.call("HSET", key, "h", b"\xc1")
    replies = await answer(pulled, *[Ended(each, 1, 1, Event.SUCCEED, RESULT, answered=False) for each in (one, two)])
    assert [reply.verdict for reply in replies] == ["broken", Completion.DONE]
    await pulled.link.call("HSET", key, "h", head)


async def test_an_answer_owes_the_callback_as_any_other(pulled: Room) -> None:
    """P80: answered with the outcome itself, a Nexus callback is spared; else it is leased to be sent."""
    spared, owed = await fetched(pulled, callback=1), await fetched(pulled, callback=1)
    replies = await answer(
        pulled,
        Ended(spared, 1, 1, Event.SUCCEED, RESULT, answered=True),
        Ended(owed, 1, 1, Event.SUCCEED, RESULT, answered=False),
    )
    assert [reply.callback and reply.callback.id for reply in replies if isinstance(reply, Completed)] == [None, owed]


async def test_a_failure_worth_repeating_backs_off_by_the_endpoints_policy(pulled: Room) -> None:
    """P288: the policy of now, counted by attempt, never before what the agent asked for."""
    await pulled.endpoint(pull=True, retry="200 3 1000 0")
    one = await fetched(pulled)
    for attempt, (least_ms, pause_ms) in enumerate([(0, 200), (0, 600), (0, 1_000), (5_000, 5_000)], start=1):
        if attempt > 1:
            await _hand_out_again(pulled, one)
        assert [reply.verdict for reply in await answer(pulled, retried(one, attempt, least_ms))] == ["backing_off"]
        kept = await pulled.kept(one)
        assert (kept.state, kept.head.start) == (State.BACKING_OFF, Delivery.DUE)
        assert kept.head.start_at - kept.head.created_at - kept.head.stamp in (pause_ms, pause_ms + 1)
        assert (await answer(pulled, retried(one, attempt)))[0].verdict == "same"


async def _hand_out_again(room: Room, one: str) -> None:
    """Once its pause is over it is in line, and a poller gets it."""
    await room.passed((await room.kept(one)).head.start_at)
    await room.claim()
    assert ids(await pull(room, (A, 1))) == [(one, A)]


async def test_the_last_attempts_failure_ends_it(pulled: Room) -> None:
    """P92."""
    one = await fetched(pulled, attempts_max=1)
    assert [reply.verdict for reply in await answer(pulled, retried(one))] == ["exhausted"]
    kept = await pulled.kept(one)
    assert (kept.state, decode_outcome(kept.fields["r"]).reason) == (State.FAILED, "attempts_exhausted")


async def test_a_release_costs_no_attempt_and_its_number_stays_used(pulled: Room) -> None:
    """P289: somebody may still have the token of the number that was released."""
    one = await fetched(pulled, attempts_max=1)
    assert [reply.verdict for reply in await answer(pulled, Released(one, 1, 1, "stopping"))] == ["waiting"]
    kept = await pulled.kept(one)
    assert (kept.state, kept.head.blocked, kept.head.attempt, kept.head.resumes) == (State.SCHEDULED, "busy", 1, 1)
    assert (kept.words[-1], kept.events[-1].detail) == ("released", "stopping")
    assert [reply.verdict for reply in await answer(pulled, Released(one, 1, 1, "stopping"))] == ["same"]
    assert ids(await pull(pulled, (B, 1))) == [(one, B)]
    assert (await pulled.kept(one)).head.attempt == 2


async def test_answers_after_the_end_change_nothing(pulled: Room) -> None:
    one = await fetched(pulled)
    await answer(pulled, Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False))
    kept = await pulled.kept(one)
    replies = await answer(pulled, retried(one), Released(one, 1, 1, "stopping"))
    assert [reply.verdict for reply in replies] == ["ended", "ended"]
    assert await pulled.kept(one) == kept


# Cancel


async def test_a_cancel_is_told_to_whoever_fetched_it(pulled: Room) -> None:
    """P290: no delivery is owed, for there is no address; the heartbeat says it as well."""
    one = await fetched(pulled)
    moved = await pulled.cancel(one)
    assert (moved.verdict, moved.work) == ("requested", None)
    assert (await pulled.kept(one)).head.cancel == Delivery.NONE
    assert await pulled.store.heartbeat([Task(one, 1, 1, 0)]) == ["cancel"]
    (done,) = await answer(pulled, Ended(one, 1, 1, Event.CANCEL, FAILURE, answered=False))
    assert done.verdict is Completion.DONE
    assert await pulled.state(one) is State.CANCELED


async def test_what_waits_for_a_poller_is_canceled_at_once(pulled: Room) -> None:
    """P31."""
    one = await pulled.accepted()
    assert (await pulled.cancel(one)).verdict == "canceled"
    assert ids(await pull(pulled)) == []


@pytest.mark.parametrize("how", ["retry", "release"])
async def test_given_up_after_a_cancel_it_ends(pulled: Room, how: str) -> None:
    """Nobody shall begin again what is not wanted any more."""
    one = await fetched(pulled)
    await pulled.cancel(one)
    (reply,) = await answer(pulled, retried(one) if how == "retry" else Released(one, 1, 1, "stopping"))
    assert reply.verdict == "canceled"
    assert await pulled.state(one) is State.CANCELED


async def test_a_timeout_is_told_to_whoever_fetched_it(pulled: Room) -> None:
    """P102: the heartbeat is answered `ended`, nothing is owed."""
    one = await fetched(pulled, run_ms=1)
    kept = await pulled.ended_by_timer(one)
    assert (kept.state, kept.head.cancel) == (State.TIMED_OUT, Delivery.NONE)
    assert await pulled.store.heartbeat([Task(one, 1, 1, 0)]) == ["ended"]


async def test_a_change_of_kind_takes_effect_with_the_next_attempt(pulled: Room) -> None:
    """From pull to push: what waits is sent; what is out is the poller's until it ends."""
    waiting, out = await pulled.accepted(), await fetched(pulled)
    await pulled.endpoint(pull=False)
    works, _ = await pulled.store.unblock(ENDPOINT, G1, 10)
    assert [work.id for work in works] == [waiting]
    (done,) = await answer(pulled, Ended(out, 1, 1, Event.SUCCEED, RESULT, answered=False))
    assert done.verdict is Completion.DONE


# Versions


async def test_what_waits_for_its_version_is_taken_by_that_alone(pulled: Room) -> None:
    """P430: it stands in a line of its own, is told of by its name, and is counted at the instance that has it."""
    heard: list[bytes] = []
    subscriber = Subscriber(pulled.link.address, on_gap=lambda: None)
    await subscriber.connect()
    try:
        subscriber.subscribe(pulled.store.keys.pull_channel(ENDPOINT), heard.append)
        await eventually(lambda: _said(pulled, heard))
        pinned, other = await pulled.accepted(pin="v4"), await pulled.accepted()
        assert await pulled.catalog.pinned(ENDPOINT) == {"v4": 1}
        old, new = Seat(A, 9, LEASE_MS, "3"), Seat(B, 9, LEASE_MS, "4")
        assert ids(await pulled.pulls.pull(ENDPOINT, [old], ())) == [(other, A)]
        assert ids(await pulled.pulls.pull(ENDPOINT, [new], ())) == []
        assert ids(await pulled.pulls.pull(ENDPOINT, [new], (), pin="v4")) == [(pinned, B)]
        assert await pulled.catalog.running(ENDPOINT) == {A: 1, B: 1}
        await answer(pulled, Released(pinned, 1, 1, "busy"), Ended(other, 1, 1, Event.SUCCEED, RESULT, answered=True))
        assert await pulled.catalog.running(ENDPOINT) == {}
        assert ids(await pulled.pulls.pull(ENDPOINT, [new], (), pin="v4")) == [(pinned, B)]
        assert [message for message in heard if message != b"x"] == [b"|v4", b"", b"|v4"]
    finally:
        await subscriber.close()


async def _said(room: Room, heard: list[bytes]) -> bool:
    await room.link.call(b"PUBLISH", room.store.keys.pull_channel(ENDPOINT), b"x")
    return bool(heard)


async def test_pinned_work_that_comes_up_among_all_others_goes_apart_and_keeps_its_slot(pulled: Room) -> None:
    """P430: it waited for a limit, in turn; no seat is of its version, and what it was entitled to is not taken."""
    await pulled.endpoint(max_concurrency=1, pull=True)
    held = await fetched(pulled)
    pinned = await pulled.accepted(pin="v4")
    await pulled.passed((await pulled.kept(pinned)).head.created_at + 1)
    other = await pulled.accepted()
    assert (await pulled.kept(pinned)).head.blocked == "concurrency"
    await answer(pulled, Ended(held, 1, 1, Event.SUCCEED, RESULT, answered=True))
    old, new = Seat(A, 9, LEASE_MS, "3"), Seat(B, 9, LEASE_MS, "4")
    got = await pulled.pulls.pull(ENDPOINT, [old], ())
    assert (ids(got), got.stopped) == ([], "concurrency")
    assert (await pulled.kept(pinned)).head.blocked == "busy"
    assert ids(await pulled.pulls.pull(ENDPOINT, [new], (), pin="v4")) == [(pinned, B)]
    await answer(pulled, Ended(pinned, 1, 1, Event.SUCCEED, RESULT, answered=True))
    assert ids(await pulled.pulls.pull(ENDPOINT, [new, old], ())) == [(other, B)]


async def test_a_seat_of_its_version_takes_it_from_the_common_line(pulled: Room) -> None:
    await pulled.endpoint(max_concurrency=1, pull=True)
    held = await fetched(pulled)
    pinned = await pulled.accepted(pin="v4")
    await answer(pulled, Ended(held, 1, 1, Event.SUCCEED, RESULT, answered=True))
    seats = [Seat(A, 9, LEASE_MS, "3"), Seat(B, 9, LEASE_MS, "4")]
    assert ids(await pulled.pulls.pull(ENDPOINT, seats, ())) == [(pinned, B)]


async def test_why_it_waits_is_corrected_whatever_the_limits(pulled: Room) -> None:
    """P430: by the gateways that see who asks; a version that nobody has stays out of the common line."""
    await pulled.endpoint(max_concurrency=1, pull=True)
    pinned = await pulled.accepted(pin="v4", blocked="busy")
    await fetched(pulled)
    for reason in ("no_version", "busy"):
        await pulled.store.unblock(ENDPOINT, G1, 10, reason, pin="v4")
        assert (await pulled.kept(pinned)).head.blocked == reason
