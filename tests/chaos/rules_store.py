"""I32, I33: the store's own bookkeeping after quiescence, operation by operation and in sum. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf

from mesh.machine import Delivery, State
from tests.chaos.history import What
from tests.chaos.snapshot import Snapshot, Stored
from tests.chaos.view import Finding, View, rule

OWED = (Delivery.DUE, Delivery.LEASED)


def _set(*times: int) -> float:
    return min((at for at in times if at > 0), default=inf)


def timer(one: Stored) -> float:
    """When the store must look at an operation again; written anew here, so that it does not repeat its mistakes."""
    head = one.head
    times: list[float] = []
    if not one.state.terminal:
        times.append(_set(head.close_by))
        times.append(_set(head.finish_by, head.beat_by) if one.state is State.STARTED else _set(head.start_by))
        if head.start == Delivery.LEASED or (head.start == Delivery.DUE and not head.blocked):
            times.append(head.start_at)
    times += [head.cancel_at] if head.cancel in OWED else []
    times += [head.callback_at] if head.callback in OWED else []
    if one.state.terminal and not times:
        return head.closed_at + head.retention_ms
    return min(times, default=inf)


@rule("I32")
def i32_every_operation_is_in_its_place(view: View) -> Iterator[Finding]:
    """One timer entry, where its owner says; waiting and dead lists, keys and indexes agree with the records."""
    for one in view.stored.values():
        for problem in (*_misplaced(one, view.snapshot), *_mislisted(one, view.snapshot)):
            yield Finding(f"{one.id} {problem}", (one,))
    yield from _orphans(view.snapshot)


def _misplaced(one: Stored, snapshot: Snapshot) -> Iterator[str]:
    head = one.head
    places = [("", snapshot.due)] if one.id in snapshot.due else []
    places += [(session, timers) for session, timers in snapshot.held.items() if one.id in timers]
    if [session for session, _ in places] != [head.owner]:
        yield f"is timed in {[session or 'due' for session, _ in places]}, its owner is {head.owner or 'nobody'}"
    elif places[0][1][one.id] != timer(one):
        yield f"is due at {places[0][1][one.id]:.0f}, not at {timer(one):.0f}"
    if bool(head.owner) != (Delivery.LEASED in (head.start, head.cancel, head.callback)):
        yield f"is owned by {head.owner!r} without a lease, or leased by nobody"
    if head.owner and head.owner not in snapshot.sessions:
        yield f"is held by {head.owner}, which is no session"


def _mislisted(one: Stored, snapshot: Snapshot) -> Iterator[str]:
    head = one.head
    if (one.id in snapshot.waiting.get(head.endpoint, [])) != bool(head.blocked):
        yield f"is blocked by {head.blocked!r}; the waiting line says otherwise"
    if head.callback in OWED and not (one.state.terminal and head.wants_callback):
        yield "owes a callback that nobody wants, or too early"
    if one.state.terminal and head.wants_callback and head.callback == Delivery.NONE:
        yield "ended and its callback was never owed"
    for kind in ("callback", "cancel"):
        dead = f"{one.id}.{head.run}.{kind}" in snapshot.dead.get(head.namespace, [])
        if dead != (getattr(head, kind) == Delivery.DEAD):
            yield f"has a {kind} that is dead in one place only"
    if one.id not in snapshot.index.get(head.namespace, []):
        yield f"is missing in the index of {head.namespace}"


def _orphans(snapshot: Snapshot) -> Iterator[Finding]:
    operations = snapshot.operations
    lists = {
        "due": snapshot.due,
        **{f"held:{name}": ids for name, ids in snapshot.held.items()},
        **{f"index:{name}": ids for name, ids in snapshot.index.items()},
        **{f"waiting:{name}": ids for name, ids in snapshot.waiting.items()},
        **{f"dead:{name}": [one.split(".")[0] for one in ids] for name, ids in snapshot.dead.items()},
        "keys": snapshot.keys.values(),
    }
    for name, ids in lists.items():
        lost = [one for one in ids if one not in operations]
        if lost:
            yield Finding(f"{name} names operations that are not there: {lost[:5]}")
    for key, one in snapshot.keys.items():
        if one in operations and operations[one].key != key:
            yield Finding(f"an idempotency key leads to {one}, which has another", (operations[one],))
    if snapshot.strays:
        yield Finding(f"keys without an owner: {snapshot.strays[:5]}")


@rule("I33")
def i33_the_sums_agree(view: View) -> Iterator[Finding]:
    """Accepted = ended by kind + live; counters of endpoints = the operations that count."""
    snapshot = view.snapshot
    indexed = sum(map(len, snapshot.index.values()))
    if indexed != len(snapshot.operations):
        yield Finding(f"{indexed} operations were accepted, {len(snapshot.operations)} are there")
    live = [one for one in snapshot.operations.values() if not one.state.terminal]
    timed = sum(map(len, (snapshot.due, *snapshot.held.values())))
    if timed != len(snapshot.operations):
        yield Finding(f"{timed} timers for {len(snapshot.operations)} operations, {len(live)} of them live")
    slots = Counter(one.head.endpoint for one in live if one.head.slot)
    for endpoint, running in snapshot.running.items():
        if running != slots[endpoint]:
            yield Finding(f"endpoint {endpoint} counts {running} running operations, there are {slots[endpoint]}")
    if any(one.head.slot for one in snapshot.operations.values() if one.state.terminal):
        yield Finding("an operation that ended still counts against its endpoint's limit")
    acked = {call.op for call in view.calls[What.START] if call.ok}
    lost = acked - snapshot.operations.keys()
    if lost:
        yield Finding(f"{len(lost)} acknowledged operations are in no sum: {sorted(lost)[:5]}")
