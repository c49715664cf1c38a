"""What is asked for in one turn of the loop travels as one function call; each is answered as if it went alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs, to_builtins

from mesh.errors import StoreUnavailable
from mesh.ids import operation_id
from mesh.machine import Event, Kind, State
from mesh.store.functions import load_library
from mesh.store.keys import SUFFIXES
from mesh.store.layout import Request
from mesh.store.library import source
from mesh.store.merging import MERGED_BYTES_MAX, MERGED_MAX, of_all
from mesh.store.pulls import PullStore
from mesh.store.starting import BacklogFull, NoEndpoint, NoSession, ParentLost, many_parts, start_parts
from mesh.store.verbs import Accepted, ChildStart, Completion, KeyReused, Replayed, Start
from tests.model.fixtures import ENDPOINT, G1, NS, OTHER_RESULT, RESULT, Room
from tests.model.snapshot import Kept


async def calls_of(room: Room) -> int:
    """Function calls so far."""
    text = (await room.link.call("INFO", "commandstats")).decode()
    (line,) = [line for line in text.splitlines() if line.startswith("cmdstat_fcall:")]
    return int(line.partition("calls=")[2].partition(",")[0])


async def published(room: Room) -> int:
    """Messages so far."""
    text = (await room.link.call("INFO", "commandstats")).decode()
    found = re.search(r"cmdstat_publish:calls=(\d+)", text)
    return int(found[1]) if found else 0


async def at_once(*asked: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*asked, return_exceptions=True)


class TestOneCall:
    async def test_starts_and_answers_of_a_turn_are_two_calls(self, room: Room) -> None:
        before = await calls_of(room)
        orders = [room.order(f"k{n}", callback=2 if n % 2 else 0) for n in range(12)]
        replies = await at_once(*[room.start(order) for order in orders])
        assert [one.attempt for one in replies] == [1] * 12
        assert await calls_of(room) == before + 1
        ids = [order.id for order in orders]
        told = await at_once(*[room.started(one) for one in ids[:4]], *[room.succeed(one) for one in ids[4:]])
        assert [one.verdict for one in told] == ["started"] * 4 + [Completion.DONE] * 8
        assert await calls_of(room) == before + 2
        owed = [one.callback.id for one in told[4:] if one.callback is not None]
        assert owed == ids[5::2]
        await at_once(*[room.store.delivered(one, 1, Kind.CALLBACK) for one in owed])
        assert await calls_of(room) == before + 3
        states = (await room.snapshot()).operations
        assert [states[one].state for one in ids] == [State.STARTED] * 4 + [State.SUCCEEDED] * 8

    async def test_one_alone_is_the_plain_call_and_many_are_several(self, room: Room) -> None:
        one = await room.accepted()
        assert (await room.succeed(one)).verdict is Completion.DONE
        before = await calls_of(room)
        replies = await at_once(*[room.start(room.order()) for _ in range(MERGED_MAX * 2 + 1)])
        assert all(isinstance(reply, Accepted) for reply in replies)
        assert await calls_of(room) == before + 3

    async def test_what_is_large_goes_alone(self, room: Room) -> None:
        before = await calls_of(room)
        orders = [room.order() for _ in range(3)]
        bodies = [b"1", b"2" * MERGED_BYTES_MAX, b"3"]
        await at_once(*[room.start(order, body) for order, body in zip(orders, bodies, strict=True)])
        assert await calls_of(room) == before + 2
        assert [await room.store.input(order.id) for order in orders] == bodies

    async def test_sent_again_it_is_answered_as_the_first_time(self, room: Room) -> None:
        """The link repeats a call whose reply was lost."""
        started = [await room.accepted(), await room.accepted()]
        request = Request("work", "Svc", "op", "application/json")
        orders = [room.order("a"), room.order("a"), room.order("b"), room.order("b", "other content")]
        starts = many_parts([start_parts(order, request, b"1") for order in orders], leased=True)
        first = of_all(await room.store.called("mesh1_start_many", *starts))
        assert [reply[0] for reply in first] == [b"accepted", b"replayed", b"accepted", b"refused"]
        again = of_all(await room.store.called("mesh1_start_many", *starts))
        assert [reply[:1] + reply[2:] for reply in again] == [reply[:1] + reply[2:] for reply in first]
        asked = await at_once(*[room.succeed(one) for one in (*started, started[0])])
        assert [one.verdict for one in asked] == [Completion.DONE, Completion.DONE, Completion.SAME]


    async def test_who_comes_again_beside_one_like_it_changes_nothing(self, room: Room) -> None:
        """With a key and without: neither is written anew, however alike it is to one that is new."""
        for key in ("", "k"):
            ended = room.order(key)
            await room.start(ended)
            await room.succeed(ended.id)
            replies = await at_once(room.start(room.order()), room.start(ended), room.start(room.order()))
            assert [reply.attempt for reply in replies] == [1, 0, 1]
            assert await room.state(ended.id) is State.SUCCEEDED


    @pytest.mark.parametrize("length", [1, 31, 32, 255, 256])
    async def test_alike_ones_have_each_its_own_outcome(self, room: Room, length: int) -> None:
        """And key and digest, however long."""
        orders = [room.order(f"{n}".zfill(length), f"{n}" * length) for n in range(4)]
        await at_once(*[room.start(order) for order in orders])
        outcomes = [RESULT, OTHER_RESULT, RESULT, OTHER_RESULT]
        told = await at_once(*[room.succeed(o.id, outcome=said) for o, said in zip(orders, outcomes, strict=True)])
        assert [one.verdict for one in told] == [Completion.DONE] * 4
        assert [await room.store.outcome(order.id) for order in orders] == outcomes
        kept = (await room.snapshot()).operations
        digests = [(kept[order.id].content.key, kept[order.id].content.digest) for order in orders]
        assert digests == [(order.key, order.digest) for order in orders]
        again = await at_once(*[room.succeed(o.id, outcome=OTHER_RESULT) for o in orders])
        assert [one.verdict for one in again] == [Completion.OTHER, Completion.SAME] * 2

    async def test_alike_ones_leave_each_its_place(self, room: Room) -> None:
        """Counted at an instance with a version, and at the endpoint's limit."""
        for most in (0, 8):
            await room.endpoint(max_concurrency=most)
            orders = [room.order() for _ in range(3)]
            await at_once(*[room.start(order) for order in orders])
            begun = [room.store.started(order.id, 1, 1, G1, "t", 0, "i-1", counted=True) for order in orders]
            await at_once(*begun)
            assert await room.link.call("HGET", room.store.keys.running(ENDPOINT), "i-1") == b"3"
            await at_once(*[room.succeed(order.id) for order in orders])
            assert await room.link.call("HGET", room.store.keys.running(ENDPOINT), "i-1") is None
            assert (await room.snapshot()).endpoints[ENDPOINT].get("run", "0") == "0"

    async def test_alike_ones_have_each_its_own_history(self, room: Room) -> None:
        """What differs is in their events alone: why they waited."""
        reasons = ["breaker", "no_instance", "breaker"]
        orders = [room.order(blocked=reason) for reason in reasons]
        await at_once(*[room.start(order) for order in orders])
        works, _ = await room.store.unblock(ENDPOINT, G1, 3)
        assert len(works) == 3
        await at_once(*[room.succeed(order.id) for order in orders])
        kept = (await room.snapshot()).operations
        details = [[event.detail for event in kept[order.id].events] for order in orders]
        assert details == [[None, reason, None, None] for reason in reasons]

    async def test_alike_ones_leave_the_line(self, room: Room) -> None:
        """They were given back, and end all the same by what came late."""
        orders = [room.order() for _ in range(3)]
        await at_once(*[room.start(order) for order in orders])
        for order in orders:
            await room.store.release(order.id, 1, 1, "unreachable", session=G1)
        told = await at_once(*[room.succeed(order.id, 0) for order in orders])
        snapshot = await room.snapshot()
        assert ([one.verdict for one in told], snapshot.waiting) == ([Completion.DONE] * 3, {})

    async def test_alike_ones_are_told_each_by_itself(self, room: Room) -> None:
        """Gateways that wait for them hear of each, where there are any."""
        orders = [room.order() for _ in range(3)]
        await at_once(*[room.start(order) for order in orders])
        room.store.alone = False
        before = await published(room)
        await at_once(*[room.succeed(order.id) for order in orders])
        assert await published(room) == before + 3


class TestEachByItself:
    async def test_a_refused_start_stops_no_other(self, room: Room) -> None:
        known = await room.accepted("known")
        parent = {"parent": operation_id(), "parent_run": 1, "parent_attempt": 1, "parent_key": "c"}
        orders: list[Start] = [
            room.order("new"),
            room.order("known"),
            room.order("known", "other content"),
            room.order("lost", endpoint="ep-of-nobody"),
            room.order("late", session="g9.s-9"),
            ChildStart(**to_builtins(room.order("child")) | parent),
            room.order("new"),
            room.order("last"),
        ]
        replies = await at_once(*[room.start(order) for order in orders])
        kinds = [Accepted, Replayed, KeyReused, NoEndpoint, NoSession, ParentLost, Replayed, Accepted]
        assert [type(reply) for reply in replies] == kinds
        assert (replies[1].id, replies[2].id, replies[6].id) == (known, known, orders[0].id)
        assert {*(await room.snapshot()).operations} == {known, orders[0].id, orders[-1].id}

    async def test_who_is_refused_has_no_key(self, room: Room) -> None:
        """All are new, so all keys are claimed at once; whoever gets no record gives its own back."""
        await room.endpoint(limits={NS: "0 1 1 1"})
        parent = {"parent": operation_id(), "parent_run": 1, "parent_attempt": 1, "parent_key": "c"}
        orders: list[Start] = [
            room.order("first"),
            room.order("waits"),
            room.order("full"),
            room.order("lost", endpoint="ep-of-nobody"),
            room.order("late", session="g9.s-9"),
            ChildStart(**to_builtins(room.order("child")) | parent),
            room.order(),
        ]
        replies = await at_once(*[room.start(order) for order in orders])
        kinds = [Accepted, Accepted, BacklogFull, NoEndpoint, NoSession, ParentLost, BacklogFull]
        assert [type(reply) for reply in replies] == kinds
        assert {*(await room.snapshot()).idempotency} == {"first", "waits"}
        await room.endpoint()
        again = await at_once(*[room.start(order) for order in (orders[2], room.order("lost"))])
        assert [type(reply) for reply in again] == [Accepted, Accepted]

    async def test_what_cannot_be_run_claims_nothing(self, room: Room) -> None:
        """A gateway of another version leaves out an argument of one of them."""
        request = Request("work", "Svc", "op", None)
        bad = start_parts(room.order("bad"), request, b"1")
        left_out = [[*bad[:number], *bad[number + 1 :]] for number in range(1, len(bad))]
        for number, parts in enumerate([*left_out, bad[:1], bad[:2]]):
            good = start_parts(room.order(f"good-{number}"), request, b"1")
            replies = await room.store.called("mesh1_start_many", *many_parts([good, parts], leased=True))
            assert [reply[0] for reply in replies] == [b"accepted", b"broken"]
            assert {*(await room.snapshot()).idempotency} == {f"good-{n}" for n in range(number + 1)}

    async def test_what_broke_half_way_keeps_its_key(self, room: Room) -> None:
        """It has a record, so whoever comes with its key finds that, and begins nothing anew."""
        turns = room.store.keys.root + SUFFIXES["turns"].encode() + ENDPOINT.encode()
        await room.link.call("SET", turns, "no sorted set")
        broken, fine = room.order("broken", blocked="breaker"), room.order("fine")
        replies = await at_once(room.start(broken), room.start(fine))
        assert [type(reply) for reply in replies] == [StoreUnavailable, Accepted]
        await room.link.call("DEL", turns)
        assert await room.start(room.order("broken", blocked="breaker")) == Replayed(broken.id, State.SCHEDULED)
        await room.link.call("FLUSHALL")

    async def test_limits_hold_within_a_turn(self, room: Room) -> None:
        await room.endpoint(max_concurrency=2)
        replies = await at_once(*[room.start(room.order()) for _ in range(5)])
        assert [(one.attempt, one.blocked) for one in replies] == [(1, ""), (1, "")] + [(0, "concurrency")] * 3
        told = await at_once(*[room.succeed(one) for one, head in await leased(room)])
        assert [one.line for one in told] == [ENDPOINT, ENDPOINT]
        works, _ = await room.store.unblock(ENDPOINT, G1, 5)
        assert len(works) == 2
        await room.snapshot()

    @pytest.mark.parametrize(
        ("limits", "reason"), [("0 1 1 2", "namespace_concurrency"), ("0.001 0 1 2", "namespace_rate")]
    )
    async def test_limits_of_a_namespace_hold_within_a_turn(self, room: Room, limits: str, reason: str) -> None:
        await room.endpoint(limits={NS: limits})
        replies = await at_once(*[room.start(room.order()) for _ in range(6)])
        out = [one for one in replies if isinstance(one, Accepted)]
        assert [one.blocked for one in out if not one.attempt] == [reason] * 2
        assert [type(one) for one in replies if not isinstance(one, Accepted)] == [BacklogFull] * (6 - len(out))
        assert len(out) < 6
        await room.snapshot()

    async def test_who_waits_since_this_turn_is_not_passed(self, room: Room) -> None:
        await room.endpoint(limits={NS: "0 5 1 0"})
        waits, next_one = await at_once(room.start(room.order(blocked="breaker")), room.start(room.order()))
        assert (waits.blocked, next_one.blocked, next_one.attempt) == ("breaker", "namespace_concurrency", 0)
        await room.snapshot()

    async def test_a_record_that_cannot_be_read_stops_no_other(self, room: Room) -> None:
        ids = [await room.accepted() for _ in range(3)]
        await room.link.call("HSET", room.store.keys.operation(ids[1]), "h", b"\x00")
        told = await at_once(*[room.succeed(one) for one in ids])
        assert [type(one) for one in told[1:2]] == [StoreUnavailable]
        assert [told[0].verdict, told[2].verdict] == [Completion.DONE, Completion.DONE]
        await room.link.call("FLUSHALL")

    async def test_what_is_unknown_or_came_too_late(self, room: Room) -> None:
        """Two say other things of one operation in one turn: the first stands."""
        one, two = await room.accepted(), await room.accepted()
        told = await at_once(
            room.succeed(one),
            room.succeed(one, outcome=OTHER_RESULT),
            room.succeed(operation_id()),
            room.started(one),
            room.succeed(two),
            room.store.delivered(two, 1, Kind.CALLBACK),
        )
        words = [told_one.verdict for told_one in told[:5]]
        assert words == [Completion.DONE, Completion.OTHER, Completion.UNKNOWN, "same", Completion.DONE]
        assert (await room.store.outcome(one)) == RESULT
        await room.snapshot()


async def leased(room: Room) -> list[tuple[str, Any]]:
    found = (await room.snapshot()).operations
    return [(one, kept.head) for one, kept in found.items() if kept.leased]


Verb = Callable[[Room, str], Awaitable[Any]]
VERBS: dict[str, Verb] = {
    "succeed": lambda room, one: room.succeed(one),
    "other": lambda room, one: room.succeed(one, outcome=OTHER_RESULT),
    "fail": lambda room, one: room.fail(one),
    "started": lambda room, one: room.started(one, beat_ms=60_000),
    "delivered": lambda room, one: room.store.delivered(one, 1, Kind.CALLBACK),
    "cancel": lambda room, one: room.cancel(one),
    "retry": lambda room, one: room.retry(one),
}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "longer": {"close_ms": 90_000},
    "told": {"callback": 2},
    "urgent": {"priority": 3},
    "pinned": {"pin": "v2"},
    "waits": {"blocked": "breaker"},
    "later": {"delay_ms": 60_000},
    "nowhere": {"endpoint": "ep-of-nobody"},
}
FROM_ACCEPTANCE = ("start_at", "close_by", "start_by", "beat_by", "finish_by")
SEATS: tuple[tuple[bytes, ...], ...] = (
    (),
    PullStore.seat("i-1", 30_000),
    PullStore.seat("i-2", 30_000),
    PullStore.seat("i-1", 20_000),
    PullStore.seat("i-1", 30_000, "v2"),
)
"""Of whoever polls while a start comes: nobody, somebody, with whatever lease, of a version."""


def said(reply: Any) -> Any:
    return getattr(reply, "verdict", reply)


def told(reply: Any) -> Any:
    """What a start is answered, but for ids and times."""
    if isinstance(reply, Accepted):
        return reply.attempt, reply.blocked, reply.room
    return type(reply), getattr(reply, "state", None)


ENDS: dict[str, Callable[[Room, str], Awaitable[Any]] | None] = {
    "goes on": None,
    "succeeds": lambda room, one: room.succeed(one),
    "succeeds at once": lambda room, one: room.succeed(one, answered=True),
    "says where": lambda room, one: room.store.complete(one, 1, 1, Event.SUCCEED, RESULT, session=G1, instance="i-1"),
    "fails": lambda room, one: room.fail(one),
    "says another": lambda room, one: room.succeed(one, outcome=OTHER_RESULT),
}


@given(
    asked=st.lists(
        st.tuples(
            st.one_of(st.just("plain"), st.sampled_from(sorted(KINDS))),
            st.integers(0, 9),
            st.one_of(st.just("succeeds"), st.sampled_from(sorted(ENDS))),
            st.one_of(st.just(SEATS[1]), st.sampled_from(SEATS)),
        ),
        min_size=2,
        max_size=12,
    )
)
@example([("plain", 0, "goes on", SEATS[1]), ("plain", 0, "goes on", SEATS[4])])
@example([("plain", 0, "succeeds", SEATS[1]), ("plain", 0, "succeeds", SEATS[2]), ("plain", 0, "fails", SEATS[3])])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("endpoint", [{}, {"max_concurrency": 3}, {"pull": True}, {"pull": True, "max_concurrency": 3}])
async def test_together_they_become_what_they_become_singly(
    room: Room, endpoint: dict[str, Any], asked: list[tuple[str, int, str, tuple[bytes, ...]]]
) -> None:
    """Alike or not, with keys that repeat (0: no key): starts and their ends, the whole of each record compared.

    Nor does it change anything that the store knows what became of those before them: the measure is a library that
    notes nothing of it.
    """
    assert source().count(NOTES) == 1
    await room.link.call("FUNCTION", "LOAD", "REPLACE", source().replace(NOTES, f"{NOTES} if true then return end"))
    first = await became(room, endpoint, asked, together=False)
    await load_library(room.link.call)
    for together in (True, True, False):
        assert await became(room, endpoint, asked, together=together) == first


NOTES: Final = "local function note(one, other, what)"
"""alike.lua"""


async def became(
    room: Room, endpoint: dict[str, Any], asked: list[tuple[str, int, str, tuple[bytes, ...]]], *, together: bool
) -> tuple[list[Any], list[Any], list[Any]]:
    """What starts and ends are answered, and the records."""
    await room.link.call("FLUSHALL")
    await room.open()
    await room.endpoint(**endpoint)
    orders = [room.order(f"k{n}" if n else "", f"c{n}", **KINDS[kind]) for kind, n, _, _ in asked]
    seats = [seat if "pull" in endpoint else () for _, _, _, seat in asked]
    ends = [ENDS[end] for _, _, end, _ in asked]
    starts = [partial(room.start, order, seat=seat) for order, seat in zip(orders, seats, strict=True)]
    begun = await answered(starts, together=together)
    over = {order.id: partial(end, room, order.id) for order, end in zip(orders, ends, strict=True) if end}
    ended = await answered([*over.values()], together=together)
    kept = (await room.snapshot()).operations
    for one, reply in zip(over, ended, strict=True):
        assert said(reply) is not Completion.DONE or reply.at_ms == kept[one].head.closed_at
    records = [kept.get(order.id) and whole(kept[order.id]) for order in orders]
    return [told(one) for one in begun], [said(one) for one in ended], records


async def answered(asked: Sequence[Callable[[], Awaitable[Any]]], *, together: bool) -> list[Any]:
    if together:
        return await at_once(*[one() for one in asked])
    return [(await at_once(one()))[0] for one in asked]


@given(
    asked=st.lists(
        st.tuples(st.one_of(st.sampled_from(["plain", "waits"]), st.sampled_from(sorted(KINDS))), st.integers(0, 9)),
        min_size=2,
        max_size=12,
    )
)
@example([("waits", 0), ("plain", 0), ("waits", 0), ("waits", 1), ("waits", 1), ("plain", 2)])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("endpoint", [{}, {"max_concurrency": 3}, {"pull": True}])
async def test_lines_of_a_batch_become_what_they_become_singly(
    room: Room, endpoint: dict[str, Any], asked: list[tuple[str, int]]
) -> None:
    """Accepted in one call and dispatched later: records and replies, and every index as the records say."""
    found: list[Any] = []
    for together in (True, False):
        await room.link.call("FLUSHALL")
        await room.open()
        await room.endpoint(**endpoint)
        orders = [
            room.order(f"k{n}" if n else "", f"c{n}", **{"delay_ms": 0, **KINDS[kind]}) for kind, n in asked
        ]
        replies = await room.many(orders) if together else [(await room.many([order]))[0] for order in orders]
        kept = (await room.snapshot()).operations
        found.append((
            [told(one) for one in replies], [kept.get(order.id) and whole(kept[order.id]) for order in orders]
        ))  # fmt: skip
    assert found[0] == found[1]


def whole(kept: Kept) -> Any:
    """A record, with times from its acceptance on."""
    head = structs.asdict(kept.head)
    for name in FROM_ACCEPTANCE:
        head[name] = head[name] and head[name] - kept.head.created_at
    for name in ("created_at", "closed_at", "callback_at"):
        head[name] = head[name] > 0
    del head["stamp"], head["events"]
    events = [(event.code, event.attempt, event.detail, event.instance) for event in kept.events]
    rest = {name: value for name, value in kept.fields.items() if name != "h"}
    return head, events, rest


@given(
    groups=st.lists(
        st.lists(st.tuples(st.sampled_from(sorted(VERBS)), st.integers(0, 3)), min_size=2, max_size=8), max_size=5
    ),
    callbacks=st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_together_is_as_one_after_the_other(
    room: Room, groups: list[list[tuple[str, int]]], callbacks: list[int]
) -> None:
    """Any verbs about any operations, several about one: the same histories, and every index as the records say.

    Canceling and retrying are calls of their own, which leave before what travels together.
    """
    orders = [[room.order(callback=callback) for callback in callbacks] for _ in range(2)]
    await at_once(*[room.start(order) for order in orders[0]])
    for order in orders[1]:
        await room.start(order)
    for group in groups:
        group.sort(key=lambda asked: asked[0] not in {"cancel", "retry"})
        together = await at_once(*[VERBS[verb](room, orders[0][number].id) for verb, number in group])
        singly = [(await at_once(VERBS[verb](room, orders[1][number].id)))[0] for verb, number in group]
        assert [said(one) for one in together] == [said(one) for one in singly]
        kept = (await room.snapshot()).operations
        first, second = ([(kept[o.id].state, kept[o.id].words) for o in some] for some in orders)
        assert first == second
    await room.link.call("FLUSHALL")
    await room.open()
