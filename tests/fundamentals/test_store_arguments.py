"""Calls with an argument missing, as a gateway of another version may send them: they work, or they change nothing.

The store does not roll back, so a function that stumbles over a missing argument must do so before its first write.
Each verb is called once as the product calls it, to learn its arguments, and then without each of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import pytest

from mesh.errors import StoreUnavailable
from mesh.machine import Event, Kind
from mesh.store.catalog import CatalogStore
from mesh.store.functions import Functions, Refused
from mesh.store.layout import encode
from mesh.store.merging import Merging, Parts
from mesh.store.pulls import Ended, PullStore
from mesh.store.store import Store
from mesh.store.verbs import Append, ChildStart, Seat, Suspend, Task
from tests.model.fixtures import ENDPOINT, G1, G2, NS, RESULT, Room
from tests.model.snapshot import faults, take

Call = Callable[[Room], Awaitable[Any]]


async def leased(room: Room) -> str:
    return await room.accepted("key-1", callback=1)


async def running(room: Room) -> str:
    one = await leased(room)
    await room.started(one, beat_ms=60_000)
    return one


async def waiting(room: Room) -> str:
    return await room.accepted(blocked="no_instance", callback=1)


async def due(room: Room) -> str:
    """Several timers of its gateway are due."""
    one = await room.accepted(lease_ms=1, callback=1)
    await room.accepted(close_ms=1, callback=1)
    await room.passed((await room.kept(one)).head.start_at + 1)
    return one


async def fetchable(room: Room) -> str:
    """It waits for a poller."""
    await room.endpoint(max_concurrency=3, pull=True)
    return await room.accepted(callback=1)


async def fetched(room: Room) -> str:
    one = await fetchable(room)
    await room.pulls.pull(ENDPOINT, [Seat("i-1", 1, 60_000)], ())
    return one


async def exhausted(room: Room) -> str:
    return await room.accepted(callback=1, attempts_max=1)


async def sending(room: Room) -> str:
    """Its callback is leased."""
    one = await leased(room)
    await room.succeed(one)
    return one


async def dead(room: Room) -> str:
    one = await sending(room)
    await room.store.defer(one, 1, Kind.CALLBACK, tries=1, delay_ms=1, dead=True, detail="404")
    return one


async def silent(room: Room) -> str:
    one = await room.accepted(session=G2)
    await room.died(G2)
    return one


CALLS: Final[dict[str, tuple[Call, Callable[[Room, str], Awaitable[Any]]]]] = {
    "start": (leased, lambda room, _: room.start(room.order("key-2", callback=1))),
    "start that waits": (leased, lambda room, _: room.start(room.order("key-2", blocked="breaker"))),
    "started": (leased, lambda room, one: room.started(one, beat_ms=1_000)),
    "complete": (leased, lambda room, one: room.succeed(one)),
    "retry": (leased, lambda room, one: room.retry(one)),
    "retry without an attempt left": (exhausted, lambda room, one: room.retry(one)),
    "release": (leased, lambda room, one: room.store.release(one, 1, 1, "unreachable", session=G1)),
    "cancel while it waits": (waiting, lambda room, one: room.cancel(one)),
    "cancel while it runs": (running, lambda room, one: room.cancel(one)),
    "heartbeat": (running, lambda room, one: room.store.heartbeat([Task(one, 1, 1, 9_000)])),
    "append": (running, lambda room, one: room.store.append("journal", [Append(one, 1, 1, 0, [b"{}"])])),
    "suspend": (running, lambda room, one: room.store.suspend([Suspend(one, 1, 1, 0, 5)])),
    "child": (running, lambda room, one: room.start(ChildStart(
        **msgspec.structs.asdict(room.order("key-2")), parent=one, parent_run=1, parent_attempt=1, parent_key="c"))),
    "heartbeat with details": (running, lambda room, one: room.store.heartbeat([Task(one, 1, 1, 9_000, b"1")])),
    "claim": (due, lambda room, _: room.claim()),
    "unblock": (waiting, lambda room, _: room.store.unblock(ENDPOINT, G1, 10)),
    "unblock a probe": (waiting, lambda room, _: room.store.unblock(ENDPOINT, G1, 10, probe=True)),
    "relabel": (waiting, lambda room, _: room.store.unblock(ENDPOINT, G1, 10, "breaker")),
    "start for a poller": (fetchable, lambda room, _: room.start(
        room.order("key-2", callback=1), seat=PullStore.seat("i-1", 9_000))),
    "pull": (fetchable, lambda room, _: room.pulls.pull(ENDPOINT, [Seat("i-1", 1, 9_000)], ())),
    "answer": (fetched, lambda room, one: room.pulls.answers(
        [Ended(one, 1, 1, Event.SUCCEED, RESULT, answered=False)], session=G1, alone=False)),
    "cancel while a poller has it": (fetched, lambda room, one: room.cancel(one)),
    "delivered": (sending, lambda room, one: room.store.delivered(one, 1, Kind.CALLBACK)),
    "defer": (sending, lambda room, one: room.store.defer(
        one, 1, Kind.CALLBACK, tries=1, delay_ms=1, dead=False, detail="503")),
    "bury": (sending, lambda room, one: room.store.defer(
        one, 1, Kind.CALLBACK, tries=1, delay_ms=1, dead=True, detail="503")),
    "redeliver": (dead, lambda room, one: room.store.redeliver(one, 1, Kind.CALLBACK, NS)),
    "join": (leased, lambda room, _: room.store.beat("g3.s-1", join=True)),
    "beat that takes over": (silent, lambda room, _: room.store.beat(G1)),
    "leave": (leased, lambda room, _: room.store.leave(G1)),
    "hand back": (leased, lambda room, one: room.store.hand_back(G1, [one])),
    "new endpoint": (leased, lambda room, _: room.endpoint(name="more")),
    "replaced endpoint": (leased, lambda room, _: room.endpoint(max_concurrency=7)),
    "pause": (leased, lambda room, _: room.catalog.endpoint_pause("work", NS, paused=True)),
    "delete": (leased, lambda room, _: room.catalog.endpoint_delete("work", NS, "")),
    "instance": (leased, lambda room, _: room.catalog.instance_put("work", NS, "i-1", b"{}", 5_000)),
}  # fmt: skip


def _renamed(value: Any, old: str, new: str) -> Any:
    """An argument, with the operation's present id for its earlier one wherever it stands."""
    if isinstance(value, bytes):
        return new.encode() if value == old.encode() else value
    if isinstance(value, list):
        return [_renamed(one, old, new) for one in value]
    if isinstance(value, dict):
        return {name: _renamed(one, old, new) for name, one in value.items()}
    return new if value == old else value


@pytest.mark.parametrize("name", CALLS)
async def test_a_missing_argument_changes_nothing_or_does_not_matter(
    room: Room, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, call = CALLS[name]
    await room.endpoint(max_concurrency=3)
    seen: list[tuple[str, dict[str, Any], tuple[bytes, ...]]] = []

    async def listen(self: Functions, verb: str, *parts: bytes) -> list[Any]:
        first = msgspec.msgpack.decode(parts[0])
        named = isinstance(first, dict)
        seen.append((verb, first if named else {}, parts[1:] if named else parts))
        raise StoreUnavailable("only asked what would be sent")

    async def listen_merged(
        self: Functions, _: Merging, verb: str, parts: Parts, *_readers: object, **_how: object
    ) -> list[Any]:
        return await listen(self, verb, *parts)

    one = await prepare(room)
    with monkeypatch.context() as patched:
        for store in (Store, CatalogStore, PullStore):
            patched.setattr(store, "called", listen)
            patched.setattr(store, "merged", listen_merged)
        with pytest.raises(StoreUnavailable):
            await call(room, one)
    (verb, arguments, payload), *_ = seen
    for left_out in (*arguments, *[str(number) for number in range(len(payload))]):
        await room.link.call("FLUSHALL")
        await room.open()
        await room.endpoint(max_concurrency=3)
        now = await prepare(room)
        some = {key: _renamed(value, one, now) for key, value in arguments.items() if key != left_out}
        rest = [_renamed(piece, one, now) for number, piece in enumerate(payload) if str(number) != left_out]
        before = await take(room.link)
        try:
            await room.store.called(verb, *([encode(some)] if arguments else []), *rest)
        except (StoreUnavailable, Refused):
            after = await take(room.link)
            after.sessions = before.sessions
            assert after == before, f"{verb} without {left_out} failed half-way"
        assert faults(await take(room.link)) == [], f"{verb} without {left_out}"
    await room.link.call("FLUSHALL")
