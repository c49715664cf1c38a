"""What paces dispatch: concurrency, rate, pause, deletion. The start is accepted and waits; no attempt is used."""

from __future__ import annotations

from asyncio import gather

from mesh.machine import Kind, State
from mesh.store.library import LIMITS
from mesh.store.verbs import Accepted
from tests.model.fixtures import ENDPOINT, G1, G2, NS, Room, eventually


async def running(room: Room) -> int:
    return int((await room.snapshot()).endpoints[ENDPOINT]["run"])


async def line(room: Room) -> list[str]:
    """The waiting line, head first."""
    return [one.decode() for one in await room.link.call("ZRANGE", room.store.keys.waiting(ENDPOINT), 0, -1)]


async def test_no_more_run_at_once_than_the_limit_says(room: Room) -> None:
    """Started ones count until they end (P95); the rest is accepted and waits."""
    await room.endpoint(max_concurrency=2)
    ids = [await room.accepted() for _ in range(5)]
    states = [await room.kept(one) for one in ids]
    assert [kept.head.attempt for kept in states] == [1, 1, 0, 0, 0]
    assert {kept.head.blocked for kept in states[2:]} == {"concurrency"}
    await room.started(ids[0])
    assert await running(room) == 2
    works, stopped = await room.store.unblock(ENDPOINT, G1, 10)
    assert (works, stopped) == ([], "concurrency")


async def test_an_end_frees_its_slot_and_names_the_line(room: Room) -> None:
    """The completing gateway learns at once that somebody waits for the slot."""
    await room.endpoint(max_concurrency=1)
    first, second = await room.accepted(), await room.accepted()
    assert (await room.succeed(first)).line == ENDPOINT
    works, stopped = await room.store.unblock(ENDPOINT, G1, 10)
    assert [(work.id, work.kind, work.head.attempt) for work in works] == [(second, Kind.START, 1)]
    assert stopped == ""
    assert (await room.succeed(second)).line == ""
    assert await running(room) == 0


async def test_the_line_is_first_come_first_served(room: Room) -> None:
    """Who came first goes first, to the millisecond, and a newcomer does not pass them, even when a slot is free."""
    await room.endpoint(max_concurrency=1)
    first = await room.accepted()
    waiting = [await room.accepted() for _ in range(4)]
    expected = await line(room)
    assert sorted(expected) == sorted(waiting)
    await room.succeed(first)
    await room.passed((await room.kept(expected[-1])).head.created_at + 1)
    newcomer = await room.accepted()
    assert (await room.kept(newcomer)).head.blocked == "concurrency"
    order: list[str] = []
    for _ in range(5):
        works, _ = await room.store.unblock(ENDPOINT, G1, 10)
        order += [work.id for work in works]
        await room.succeed(order[-1])
    assert order == [*expected, newcomer]


async def failed_before(room: Room, count: int) -> set[str]:
    """Operations in line whose first attempt failed, given back by a courier that found the breaker open."""
    ids = {await room.accepted() for _ in range(count)}
    for one in ids:
        await room.retry(one, delay_ms=1)
    for work in await room.claimed(count=count):
        await room.store.release(work.id, 1, work.head.attempt, "breaker", session=G1)
    return ids


async def test_a_probe_is_what_failed_least_and_the_newest_of_several(room: Room) -> None:
    """P116: the head of the line, which failed before, is not the judge of the endpoint again and again."""
    bad = await failed_before(room, 1)
    good = await room.accepted(blocked="breaker")
    await room.passed((await room.kept(good)).head.created_at + 1)
    newest = await room.accepted(blocked="breaker")
    assert (await line(room))[0] in bad
    probes: list[str] = []
    for _ in range(3):
        works, _ = await room.store.unblock(ENDPOINT, G1, 64, probe=True)
        probes += [work.id for work in works]
    assert probes == [newest, good, *bad]
    assert await room.store.unblock(ENDPOINT, G1, 64, probe=True) == ([], "")


async def test_a_long_line_is_sampled_for_the_probe(room: Room) -> None:
    """P116: one that never failed gets its turn behind many that did, wherever it stands."""
    good = await room.accepted(blocked="breaker")
    await room.passed((await room.kept(good)).head.created_at + 1)
    bad = await failed_before(room, LIMITS["probe_look"] + 8)
    for _ in range(100):
        works, _ = await room.store.unblock(ENDPOINT, G1, 1, probe=True)
        if works[0].id == good:
            return
        assert works[0].id in bad
        await room.store.release(works[0].id, 1, works[0].head.attempt, "breaker", session=G1)
    raise AssertionError("never probed")


async def test_back_off_and_loss_free_the_slot_too(room: Room) -> None:
    """Only what is out there counts; a slot is taken again with the next attempt."""
    await room.endpoint(max_concurrency=1)
    first = await room.accepted()
    second = await room.accepted()
    assert (await room.retry(first)).line == ENDPOINT
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 1))[0]] == [second]
    await room.died(G1)
    await room.store.beat(G2)
    assert await running(room) == 0


async def test_an_attempt_that_is_due_again_waits_in_line_like_all(room: Room) -> None:
    """Its back-off is over, but the slot is taken: it goes back into the line, by its age at the head."""
    await room.endpoint(max_concurrency=1)
    first = await room.accepted()
    await room.retry(first, delay_ms=1)
    second = await room.accepted()
    third = await room.accepted()

    async def waits() -> bool:
        await room.claim()
        return (await room.kept(first)).head.blocked == "concurrency"

    await eventually(waits)
    assert set(await line(room)) == {first, third}
    await room.succeed(second)
    assert (await room.kept(first)).words[-2:] == ["attempt_failed", "blocked"]


async def test_one_claim_hands_on_the_slots_that_it_frees(room: Room) -> None:
    """Two lost attempts in one claim: each frees its slot before the next one is weighed, so both go out again."""
    await room.endpoint(max_concurrency=2)
    ids = {await room.accepted(lease_ms=20), await room.accepted(lease_ms=20)}
    await room.passed(max([(await room.kept(one)).head.start_at for one in ids]))
    works = (await room.claim()).works
    assert {(work.id, work.head.attempt) for work in works} == {(one, 2) for one in ids}
    assert await running(room) == 2


async def test_a_201_of_a_lost_attempt_takes_its_slot_again(room: Room) -> None:
    """It runs, so it counts, even above the limit for a moment."""
    await room.endpoint(max_concurrency=1)
    first = await room.accepted()
    await room.died(G1)
    await room.store.beat(G2)
    assert await running(room) == 0
    await room.started(first)
    assert await running(room) == 1
    await room.succeed(first)
    assert await running(room) == 0


async def test_a_lower_limit_lets_the_running_finish(room: Room) -> None:
    """Nothing is taken back; nothing new goes out until the count is below the new limit."""
    await room.endpoint(max_concurrency=3)
    ids = [await room.accepted() for _ in range(3)]
    await room.endpoint(max_concurrency=1)
    waiting = await room.accepted()
    await room.succeed(ids[0])
    await room.succeed(ids[1])
    assert (await room.store.unblock(ENDPOINT, G1, 1))[1] == "concurrency"
    await room.succeed(ids[2])
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 1))[0]] == [waiting]


async def test_a_lifted_limit_forgets_its_slots_as_they_end(room: Room) -> None:
    """Operations counted under the limit are discounted when they end, whatever the limit is by then."""
    await room.endpoint(max_concurrency=1)
    first, second = await room.accepted(), await room.accepted()
    await room.endpoint(max_concurrency=0)
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [second]
    await room.succeed(first)
    await room.succeed(second)
    assert await running(room) == 0


async def test_the_rate_is_kept_over_all_gateways(room: Room) -> None:
    """10 per second: a quarter of a second may run ahead, the others wait for their turn."""
    await room.endpoint(rate_per_s=10)
    replies = [await room.start(room.order(session=session)) for session in (G1, G2) * 4]
    sent = [reply for reply in replies if isinstance(reply, Accepted) and reply.attempt]
    assert 3 <= len(sent) <= 4
    assert {reply.blocked for reply in replies if isinstance(reply, Accepted) and not reply.attempt} == {"rate"}


async def test_a_high_rate_is_a_rate_too(room: Room) -> None:
    """5,000 per second are 0.2 ms apart: less than the clock's step must still add up."""
    await room.endpoint(rate_per_s=5_000)
    for _ in range(20):
        await room.accepted()
    seconds, micros = await room.link.call("TIME")
    facts = (await room.snapshot()).endpoints[ENDPOINT]
    ahead_ms = float(facts["tat"]) - (await _first_created(room))
    assert ahead_ms >= 20 * 0.2 - 0.01
    assert float(facts["tat"]) <= int(seconds) * 1000 + int(micros) / 1000 + 5


async def _first_created(room: Room) -> float:
    return min(kept.head.created_at for kept in (await room.snapshot()).operations.values())


async def test_a_look_at_the_line_catches_up_with_the_rate(room: Room) -> None:
    """Couriers look at a line a few times a second. One look sends all that became due since the last one."""
    await room.endpoint(rate_per_s=200)
    await gather(*[room.accepted() for _ in range(150)])
    assert 50 <= 150 - len(await line(room)) <= 100
    await room.passed(int(await _first_created(room)) + 200)
    works, stopped = await room.store.unblock(ENDPOINT, G1, 64)
    assert len(works) >= 10
    assert stopped == "rate"


async def test_a_pause_keeps_and_a_resume_sends(room: Room) -> None:
    """New operations are kept and show `paused`; what is out there goes on."""
    first = await room.accepted()
    await room.catalog.endpoint_pause("work", NS, paused=True)
    second = await room.accepted()
    assert (await room.kept(second)).head.blocked == "paused"
    assert (await room.store.unblock(ENDPOINT, G1, 10)) == ([], "paused")
    await room.succeed(first)
    assert (await room.claim()).lines == [ENDPOINT]
    await room.catalog.endpoint_pause("work", NS, paused=False)
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [second]
    assert (await room.claim()).lines == []


async def test_work_of_a_deleted_endpoint_waits_for_its_return(room: Room) -> None:
    """The registration comes back to its owner under its old id, and the waiting work with it."""
    first = await room.accepted()
    await room.retry(first, delay_ms=1)
    await room.catalog.endpoint_delete("work", NS, "")

    async def waits() -> bool:
        await room.claim()
        return (await room.kept(first)).head.blocked == "endpoint_deleted"

    await eventually(waits)
    assert await room.store.unblock(ENDPOINT, G1, 10) == ([], "endpoint_deleted")
    assert await room.endpoint() == ENDPOINT
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [first]


async def test_what_runs_while_its_endpoint_goes_away_ends_well(room: Room) -> None:
    """The agent is at work; its result is kept, its slot is given back to the tombstone."""
    await room.endpoint(max_concurrency=1)
    one = await room.accepted()
    await room.started(one)
    await room.catalog.endpoint_delete("work", NS, "")
    await room.succeed(one)
    assert await room.state(one) is State.SUCCEEDED
    assert await running(room) == 0


async def test_the_name_of_a_deleted_endpoint_may_pass_to_another_team(room: Room) -> None:
    """As a new endpoint: the old owner's work does not follow it."""
    one = await room.accepted(blocked="no_instance")
    await room.catalog.endpoint_delete("work", NS, "")
    put = await room.catalog.endpoint_put("work", "others", "e-2", b"{}", if_match="", max_concurrency=0, rate_per_s=0)
    assert put[:2] == ("created", "e-2")
    assert await room.store.unblock("e-2", G1, 10) == ([], "")
    assert (await room.kept(one)).head.endpoint == ENDPOINT


async def test_the_shown_reason_is_corrected(room: Room) -> None:
    """A gateway that knows better why the line stands says so; the same reason twice is one event."""
    one = await room.accepted(blocked="no_instance")
    for _ in range(2):
        assert (await room.store.unblock(ENDPOINT, G1, 10, "breaker"))[0] == []
    kept = await room.kept(one)
    assert kept.head.blocked == "breaker"
    assert [event.detail for event in kept.events[1:]] == ["no_instance", "breaker"]


async def test_nobody_moves_a_line_for_an_unknown_endpoint(room: Room) -> None:
    """An answer, not an error: the gateway may hold an old list."""
    assert await room.store.unblock("e-9", G1, 10) == ([], "endpoint_deleted")


async def forgotten(room: Room) -> bool:
    """Whether nothing is left of the endpoint, after a look that comes when its time is over."""
    await room.link.call("ZADD", room.store.keys.gone, "XX", 1, ENDPOINT)
    await room.store.beat(G1)
    snapshot = await room.snapshot()
    assert (ENDPOINT in snapshot.endpoints) == ("work" in snapshot.names)
    return ENDPOINT not in snapshot.endpoints


async def test_a_deleted_endpoint_leaves_nothing_behind(room: Room) -> None:
    """P93: its tombstone is there for what may come back to it, and goes when its time is over."""
    await room.catalog.endpoint_delete("work", NS, "", kept_ms=60_000)
    await room.store.beat(G1)
    assert ENDPOINT in (await room.snapshot()).endpoints
    assert await forgotten(room)
    assert await room.link.call("EXISTS", room.store.keys.gone) == 0


async def test_but_not_while_work_waits_for_it(room: Room) -> None:
    """P93: a registration under the name finds its work again, however late."""
    one = await room.accepted(blocked="no_instance")
    await room.catalog.endpoint_delete("work", NS, "", kept_ms=1)
    assert not await forgotten(room)
    assert await room.endpoint() == ENDPOINT
    assert not await forgotten(room)
    assert [work.id for work in (await room.store.unblock(ENDPOINT, G1, 10))[0]] == [one]
    await room.endpoint(max_concurrency=2)
    await room.accepted()
    await room.catalog.endpoint_delete("work", NS, "", kept_ms=1)
    assert not await forgotten(room), "one counts as running"


async def test_what_is_left_over_of_a_forgotten_endpoint_ends(room: Room) -> None:
    """P93: it ran all that time, unleased and uncounted; its attempt is over now and nothing could take the next."""
    runs, lost, due = [await room.accepted() for _ in range(3)]
    await room.started(runs)
    await room.catalog.endpoint_delete("work", NS, "", kept_ms=1)
    assert await forgotten(room)
    await room.succeed(runs)
    await room.store.release(lost, 1, 1, "unreachable", session=G1)
    await room.retry(due, delay_ms=1)
    ended: set[str] = set()

    async def both() -> bool:
        ended.update((await room.claim()).ended)
        return ended >= {lost, due}

    await eventually(both)
    for one in (lost, due):
        kept = await room.kept(one)
        assert (kept.state, kept.events[-1].detail) == (State.FAILED, "endpoint_deleted")
    assert await room.state(runs) is State.SUCCEEDED
