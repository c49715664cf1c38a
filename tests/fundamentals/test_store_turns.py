"""Whose turn it is: namespaces in an endpoint's line, priorities, and what each namespace may use of an endpoint."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.store.keys import SUFFIXES
from mesh.store.library import LIMITS
from mesh.store.starting import BacklogFull
from mesh.store.verbs import Accepted, Replayed, Seat
from tests.model.fixtures import ENDPOINT, G1, G2, Room, eventually


async def crowd(room: Room, **counts: int) -> str:
    """One operation runs, the others wait; the first one's id."""
    first = await room.accepted()
    for namespace, count in counts.items():
        for _ in range(count):
            await room.accepted(ns=namespace)
    return first


async def served(room: Room, running: str, count: int) -> list[str]:
    """Namespaces in the order in which a slot was theirs, one slot at a time."""
    order: list[str] = []
    for _ in range(count):
        await room.succeed(running)
        (work,), _ = await room.store.unblock(ENDPOINT, G2 if len(order) % 2 else G1, 10)
        running = work.id
        order.append(work.head.namespace)
    return order


async def test_namespaces_take_turns_whatever_one_of_them_has_in_line(room: Room) -> None:
    """P330: who floods waits for itself."""
    await room.endpoint(max_concurrency=1)
    first = await crowd(room, a=9, b=2, c=1)
    assert await served(room, first, 12) == [*"abcab", *"aaaaaaa"]


async def test_weights_share_what_all_want(room: Room) -> None:
    """P330: of any stretch in which both wait, each has its part."""
    await room.endpoint(max_concurrency=1, limits={"b": "0 0 3 0"})
    first = await crowd(room, a=4, b=9)
    order = await served(room, first, 12)
    assert Counter(order[:4]) == Counter(order[4:8]) == Counter(order[8:]) == {"a": 1, "b": 3}


async def test_coming_and_going_brings_no_more_than_staying(room: Room) -> None:
    """P330: one that has always one in line, new each time, gets what the others get."""
    await room.endpoint(max_concurrency=1)
    running = await crowd(room, a=6, b=1)
    order: list[str] = []
    for _ in range(8):
        (namespace,) = await served(room, running, 1)
        order.append(namespace)
        snapshot = await room.snapshot()
        running = next(kept.id for kept in snapshot.operations.values() if kept.head.slot)
        if namespace == "b":
            await room.accepted(ns="b")
    assert order == [*"abababab"]


async def test_who_was_away_is_not_owed_the_past(room: Room) -> None:
    """P330: it begins at the present, next in turn, once."""
    await room.endpoint(max_concurrency=1)
    running = await crowd(room, a=8)
    await served(room, running, 4)
    for _ in range(4):
        await room.accepted(ns="b")
    running = next(kept.id for kept in (await room.snapshot()).operations.values() if kept.head.slot)
    assert await served(room, running, 6) == [*"abab", *"ab"]


async def test_priority_goes_first_within_its_namespace_only(room: Room) -> None:
    """P332: and equal ones go as they came, to the millisecond."""
    await room.endpoint(max_concurrency=1)
    running = await room.accepted()
    plain = [await room.accepted(ns="a") for _ in range(2)]
    urgent = await room.accepted(ns="a", priority=9)
    other = await room.accepted(ns="b")
    order: list[str] = []
    for _ in range(4):
        await room.succeed(running)
        (work,), _ = await room.store.unblock(ENDPOINT, G1, 10)
        running = work.id
        order.append(running)
    assert (order[:2], set(order[2:])) == ([urgent, other], set(plain))


async def test_a_level_is_worth_so_much_waiting(room: Room) -> None:
    """P332: whoever waits gains on all that come later, so that nobody waits for ever."""
    await room.endpoint(max_concurrency=1)
    await room.accepted()
    places: dict[int, float] = {}
    for priority in (0, 1, 9):
        one = await room.accepted(priority=priority)
        kept = (await room.snapshot()).line[f"{ENDPOINT}:default"][one]
        places[priority] = kept - (await room.kept(one)).head.created_at
    assert places == {0: 0, 1: -LIMITS["priority_ms"], 9: -9 * LIMITS["priority_ms"]}


async def test_a_namespace_at_its_own_limit_stands_in_nobodys_way(room: Room) -> None:
    """P333: over all gateways, to the operation; an end lets the next one go."""
    await room.endpoint(limits={"*": "0 2 1 0", "b": "0 0 1 0"})
    flood = [await room.accepted(ns="a", session=(G1, G2)[number % 2]) for number in range(6)]
    heads = [(await room.kept(one)).head for one in flood]
    assert [head.blocked for head in heads] == ["", "", *["namespace_concurrency"] * 4]
    assert (await room.store.unblock(ENDPOINT, G2, 10))[0] == []
    free = await room.accepted(ns="b")
    assert (await room.kept(free)).head.attempt == 1, "no line stands before it"
    assert (await room.store.unblock(ENDPOINT, G1, 10))[0] == []
    assert (await room.succeed(flood[0])).line == ENDPOINT
    works = [work.id for session in (G1, G2) for work in (await room.store.unblock(ENDPOINT, session, 10))[0]]
    assert len(works) == 1
    assert works[0] in flood[2:]


async def test_a_raised_limit_is_used_at_once(room: Room) -> None:
    """P333: what was parked is looked at again."""
    await room.endpoint(limits={"a": "0 1 1 0"})
    for _ in range(3):
        await room.accepted(ns="a")
    assert (await room.store.unblock(ENDPOINT, G1, 10))[0] == []
    await room.endpoint(limits={"a": "0 2 1 0"})
    assert len((await room.store.unblock(ENDPOINT, G1, 10))[0]) == 1
    await room.endpoint()
    assert len((await room.store.unblock(ENDPOINT, G1, 10))[0]) == 1


async def test_a_namespace_has_a_pace_of_its_own(room: Room) -> None:
    """P333: a burst of a quarter second at most, then evenly; others are not held up."""
    await room.endpoint(limits={"a": "10 0 1 0"})
    ids = [await room.accepted(ns="a") for _ in range(8)]
    out = [(await room.kept(one)).head.attempt for one in ids]
    assert sum(out) <= 1 + 10 * LIMITS["rate_ahead_ms"] / 1000 + 1
    assert (await room.kept(ids[-1])).head.blocked == "namespace_rate"
    assert (await room.kept(await room.accepted(ns="b"))).head.attempt == 1


async def pace(room: Room, field: str) -> float:
    """When the rate that `field` keeps would be used up evenly, ms from now."""
    kept: bytes = await room.link.call("HGET", room.store.keys.endpoint(ENDPOINT), field)
    seconds, micros = await room.link.call("TIME")
    return float(kept) - int(seconds) * 1000 - int(micros) / 1000


async def drained(room: Room, ids: list[str], *pins: str) -> None:
    """Look at the line, and those of `pins`, until all of `ids` went."""
    left = set(ids)

    async def look() -> bool:
        for pin in ("", *pins):
            works, _ = await room.store.unblock(ENDPOINT, G2, 10, pin=pin)
            left.difference_update(work.id for work in works)
        return not left

    await eventually(look)


async def test_a_raised_rate_acts_at_once(room: Room) -> None:
    """P97: what went at 0.01/s holds nothing back for 100 s; a rate raised a little lets nobody go before its time."""
    await room.endpoint(rate_per_s=0.01)
    _, *waiting = [await room.accepted() for _ in range(3)]
    await room.endpoint(rate_per_s=0.02)
    assert await room.store.unblock(ENDPOINT, G1, 10) == ([], "rate")
    assert 40_000 < await pace(room, "tat") <= 50_000 + LIMITS["rate_ahead_ms"]
    await room.endpoint(rate_per_s=1000)
    await drained(room, waiting)


async def test_a_raised_rate_of_a_namespace_acts_at_once(room: Room) -> None:
    """P333: by name or `*`, also for what waits for its version apart."""
    await room.endpoint(limits={"*": "0.01 0 1 0"})
    for namespace in "ab":
        pinned = [await room.accepted(ns=namespace, pin="v1", blocked="no_version") for _ in range(3)]
        _, *waiting = [await room.accepted(ns=namespace) for _ in range(3)]
        for pin in ("", "v1"):
            assert (await room.store.unblock(ENDPOINT, G1, 10, pin=pin))[0] == []
        await room.endpoint(limits={"*": "0.01 0 1 0", namespace: "1000 0 1 0"})
        await drained(room, [*waiting, *pinned], "v1")
    await room.accepted(ns="c")
    await room.accepted(ns="c")
    await room.endpoint(limits={"*": "1000 0 1 0"})
    assert await pace(room, "tat:c") <= 1 + LIMITS["rate_ahead_ms"]


async def test_what_else_changes_leaves_the_pace(room: Room) -> None:
    """P333: registering again is no way to get more than the rate."""
    await room.endpoint(rate_per_s=5, limits={"a": "2 0 1 0"})
    for _ in range(4):
        await room.accepted(ns="a")
    paces = ("HMGET", room.store.keys.endpoint(ENDPOINT), "tat", "tat:a")
    before = await room.link.call(*paces)
    await room.endpoint(rate_per_s=5, limits={"a": "2 0 1 0"}, retry="2000 2 60000 0")
    await room.endpoint(rate_per_s=1, limits={"a": "1 0 1 0"})
    assert await room.link.call(*paces) == before


async def test_pollers_take_in_turns_too(room: Room) -> None:
    """P330, P282: whatever services are wanted."""
    await room.endpoint(pull=True)
    for namespace, count in (("a", 5), ("b", 2)):
        for _ in range(count):
            await room.start(room.order(ns=namespace), service="Svc")
    await room.start(room.order(ns="c"), service="Other")
    pulled = await room.pulls.pull(ENDPOINT, [Seat("i", 4, 60_000)], ["Svc"])
    assert [work.head.namespace for work, _ in pulled.works] == [*"abab"]
    pulled = await room.pulls.pull(ENDPOINT, [Seat("i", 9, 60_000)], [])
    assert [work.head.namespace for work, _ in pulled.works][:2] == [*"ca"]
    assert (len(pulled.works), pulled.more) == (4, False)


async def test_a_full_backlog_refuses_and_keeps_nothing(room: Room) -> None:
    """Before anything is stored; what was accepted is answered again, others have their own."""
    await room.endpoint(max_concurrency=1, limits={"*": "0 0 1 2"})
    running = await room.accepted(ns="a")
    order = room.order("k1", ns="a")
    reply = await room.start(order)
    assert isinstance(reply, Accepted)
    assert (reply.blocked, reply.room) == ("concurrency", 1)
    await room.accepted(ns="a")
    before = await room.snapshot()
    for key in ("", "k2"):
        with pytest.raises(BacklogFull) as refused:
            await room.start(room.order(key, ns="a"))
        assert (refused.value.depth, refused.value.cap, refused.value.drain_ms) == (2, 2, 0)
    assert await room.snapshot() == before
    assert isinstance(await room.start(room.order("k1", ns="a")), Replayed)
    assert await room.accepted(ns="b")
    await room.succeed(running)
    assert len((await room.store.unblock(ENDPOINT, G1, 10))[0]) == 1
    assert await room.accepted("k2", ns="a")
    with pytest.raises(BacklogFull) as refused:
        await room.start(room.order(ns="a"))
    assert refused.value.drain_ms > 0, "something went, so it says when to come back"


async def test_what_is_accepted_for_later_has_a_bound_of_its_own(room: Room) -> None:
    """P433: of each namespace, exactly, and before anything is kept; a cancel makes room, and so does its time."""
    await room.endpoint(limits={"*": "0 0 1 0 2"})
    order = room.order("k1", ns="a", delay_ms=60_000)
    assert isinstance(await room.start(order), Accepted)
    assert isinstance(await room.start(order), Accepted), "sent again after a lost reply"
    await room.accepted(ns="a", delay_ms=60_000)
    before = await room.snapshot()
    with pytest.raises(BacklogFull) as refused:
        await room.start(room.order("k2", ns="a", delay_ms=60_000))
    found = refused.value
    assert (found.depth, found.cap, found.later, 0 < found.drain_ms <= 60_000) == (2, 2, 1, True)
    assert await room.snapshot() == before
    assert isinstance(await room.start(room.order("k1", ns="a", delay_ms=60_000)), Replayed)
    (reply,) = await room.many([room.order("k3", ns="a", delay_ms=60_000)])
    assert isinstance(reply, BacklogFull)
    assert await room.accepted(ns="a"), "what is not for later has nothing to do with it"
    assert await room.accepted(ns="b", delay_ms=60_000)
    assert (await room.store.cancel(order.id, "a", G1)) is not None
    soon = await room.accepted(ns="a", delay_ms=100)
    await room.passed((await room.kept(soon)).head.start_at + 1)
    await room.accepted("k2", ns="a", delay_ms=60_000)
    with pytest.raises(BacklogFull):
        await room.start(room.order(ns="a", delay_ms=60_000))
    key = room.store.keys.root + SUFFIXES["later"].encode() + f"{ENDPOINT}:a".encode()
    assert await room.link.call("PEXPIRETIME", key) == max(
        kept.head.start_at for kept in (await room.snapshot()).operations.values() if kept.head.namespace == "a"
    )


async def test_what_is_for_later_counts_when_it_comes_up(room: Room) -> None:
    """P334, P360: it joins a full line too, since it was accepted; whatever comes then is refused, be it for later."""
    await room.endpoint(max_concurrency=1, limits={"*": "0 0 1 2"})
    await room.accepted()
    later = [await room.accepted(delay_ms=1) for _ in range(4)]

    async def joined() -> bool:
        await room.claim()
        return all([(await room.kept(one)).head.blocked for one in later])

    await eventually(joined)
    for order in (room.order(), room.order(delay_ms=60_000)):
        with pytest.raises(BacklogFull) as refused:
            await room.start(order)
        assert (refused.value.depth, refused.value.cap) == (4, 2)


async def test_running_has_what_was_dispatched_under_a_limit(room: Room) -> None:
    """P336: whatever limits there are now; it counts down to nothing."""

    async def running() -> int:
        _, (queue,) = await room.catalog.queues([ENDPOINT])
        return queue.running

    await room.endpoint(limits={"*": "0 2 1 0"})
    counted = [await room.accepted() for _ in range(2)]
    await room.endpoint()
    await room.accepted()
    assert await running() == 2
    await room.endpoint(max_concurrency=3)
    assert (await room.kept(await room.accepted())).head.attempt == 1
    assert await running() == 3
    for one in counted:
        await room.succeed(one)
    assert await running() == 1


async def test_who_uses_none_of_this_pays_nothing(room: Room) -> None:
    """The store's own calls in a plain start and its end: as many as before there were turns and limits."""

    async def calls() -> Counter[str]:
        info: bytes = await room.link.call("INFO", "commandstats")
        stats = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return Counter({name[8:]: int(text.split(",")[0][6:]) for name, text in stats.items()})

    before = await calls()
    await room.succeed(await room.accepted("key"))
    made = await calls() - before
    for name in ("info", "fcall"):
        del made[name]
    assert made.total() <= 13, made
