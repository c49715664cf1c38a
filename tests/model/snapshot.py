"""The whole store at one moment, and what must hold of it at every moment.

`take` reads every key in one call, so nothing moves in between. `faults` compares the indexes with the records they
are made from and says in sentences what does not fit; an empty list is the proof. It restates the rules in the plainest
way it can and takes nothing from the Lua library but the record's layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from typing import Any, Final

from mesh.events import EventKind
from mesh.ids import PARTITION
from mesh.machine import OPERATION, Delivery, Event, Move, State
from mesh.store.keys import SUFFIXES, root
from mesh.store.layout import Content, Entry, Head, Line, decode_content, decode_events, decode_head, decode_line
from mesh.store.link import Link
from tests.model.ground import DEAD_MS, NEVER_MS
from tests.model.turns import LEVEL_MS

EVERYTHING: Final = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local value
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  else value = redis.call('GET', key) end
  all[#all + 1] = { key, value }
end
return all
"""

OWED: Final = (Delivery.DUE, Delivery.LEASED)
HISTORY: Final = {
    EventKind.DISPATCHED: Event.DISPATCH,
    EventKind.BLOCKED: Event.BLOCK,
    EventKind.STARTED: Event.START,
    EventKind.ATTEMPT_FAILED: Event.RETRY,
    EventKind.ATTEMPT_LOST: Event.LOSE,
    EventKind.RELEASED: Event.LOSE,
    EventKind.SUCCEEDED: Event.SUCCEED,
    EventKind.FAILED: Event.FAIL,
    EventKind.CANCELED: Event.CANCEL,
    EventKind.TIMED_OUT: Event.TIME_OUT,
    EventKind.SUSPENDED: Event.SUSPEND,
}
"""The events of a history that move the operation; FAILED also stands for exhaustion, CANCELED for a withdrawal."""


@dataclass
class Kept:
    """One operation as it lies in the store."""

    id: str
    head: Head
    events: list[Entry]
    fields: dict[str, bytes]

    @property
    def state(self) -> State:
        return State(self.head.state)

    @property
    def content(self) -> Content:
        return decode_content(self.fields["q"])

    @property
    def leased(self) -> bool:
        return Delivery.LEASED in (self.head.start, self.head.cancel, self.head.callback)

    @property
    def words(self) -> list[str]:
        """The history, as it reads on /v1."""
        return [EventKind(event.code).word for event in self.events]


@dataclass
class Snapshot:
    """All keys of the partition, decoded. Timers: `due` under "", else by session."""

    operations: dict[str, Kept] = field(default_factory=dict)
    timers: dict[str, dict[str, float]] = field(default_factory=dict)
    sessions: dict[str, float] = field(default_factory=dict)
    index: dict[str, dict[str, float]] = field(default_factory=dict)
    dead: dict[str, dict[str, float]] = field(default_factory=dict)
    waiting: dict[str, dict[str, float]] = field(default_factory=dict)
    waiting_endpoints: set[str] = field(default_factory=set)
    line: dict[str, dict[str, float]] = field(default_factory=dict)
    turns: dict[str, dict[str, float]] = field(default_factory=dict)
    debts: dict[str, dict[str, float]] = field(default_factory=dict)
    parked: dict[str, dict[str, float]] = field(default_factory=dict)
    later: dict[str, dict[str, float]] = field(default_factory=dict)
    journals: dict[str, list[Line]] = field(default_factory=dict)
    streams: dict[str, list[Line]] = field(default_factory=dict)
    children: dict[str, dict[str, float]] = field(default_factory=dict)
    unfinished: dict[str, set[str]] = field(default_factory=dict)
    idempotency: dict[str, str] = field(default_factory=dict)
    endpoints: dict[str, dict[str, str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    catalog: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)


async def take(link: Link, partition: str = PARTITION) -> Snapshot:
    """Read everything. Keys outside the partition, such as a test's own clock, are left out."""
    snapshot = Snapshot()
    base = root(partition).decode()
    for key, value in await link.call("EVAL", EVERYTHING, 0):
        name = key.decode()
        if name.startswith(base):
            _sort(snapshot, name[len(base) :], value)
    return snapshot


def _sort(snapshot: Snapshot, name: str, value: Any) -> None:  # noqa: C901, PLR0912 - one arm per kind of key
    """Put one key where it belongs. Longest names first, since `:ops:` would also pass for `:o`."""
    for kind, suffix in sorted(SUFFIXES.items(), key=lambda item: -len(item[1])):
        if not (name.startswith(suffix) if suffix.endswith(":") else name == suffix):
            continue
        rest = name[len(suffix) :]
        if kind == "operation":
            snapshot.operations[rest] = _kept(rest, value)
        elif kind == "idempotency":
            snapshot.idempotency[rest] = value.decode()
        elif kind == "due":
            snapshot.timers[""] = _scores(value)
        elif kind == "held":
            snapshot.timers[rest] = _scores(value)
        elif kind == "sessions":
            snapshot.sessions = _scores(value)
        elif kind in ("journal", "stream"):
            getattr(snapshot, f"{kind}s")[rest] = [decode_line(element) for element in value]
        elif kind == "unfinished":
            snapshot.unfinished[rest] = {one.decode() for one in value}
        elif kind in ("index", "dead", "waiting", "children", "line", "turns", "debts", "parked", "later"):
            getattr(snapshot, kind)[rest] = _scores(value)
        elif kind == "waiting_endpoints":
            snapshot.waiting_endpoints = {one.decode() for one in value}
        elif kind == "endpoint":
            snapshot.endpoints[rest] = {name: text.decode() for name, text in _pairs(value).items()}
        elif kind == "names":
            snapshot.names = {name: text.decode() for name, text in _pairs(value).items()}
        elif kind == "catalog":
            snapshot.catalog = set(_pairs(value))
        elif kind == "instances":
            snapshot.instances.add(rest)
        return
    snapshot.foreign.append(name)


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}


def _scores(flat: list[bytes]) -> dict[str, float]:
    at = {name: float(score) for name, score in _pairs(flat).items()}
    return {name: inf if score >= NEVER_MS else score for name, score in at.items()}


def _kept(operation_id: str, flat: list[bytes]) -> Kept:
    fields = _pairs(flat)
    head = decode_head(fields["h"])
    return Kept(operation_id, head, decode_events(head), fields)


def next_look(head: Head) -> float:
    """When somebody must look at the operation next, from its record alone."""
    times: list[int] = []
    owes = [head.cancel_at] if head.cancel in OWED else []
    owes += [head.callback_at] if head.callback in OWED else []
    if State(head.state).terminal and head.children == 2:
        return head.closed_at
    if State(head.state).terminal:
        kept = [at for state, at in ((head.cancel, head.cancel_at), (head.callback, head.callback_at))
                if state == Delivery.DEAD]  # fmt: skip
        past = max([head.closed_at + head.retention_ms, *[at + DEAD_MS for at in kept]])
        return min(owes, default=past)
    times += [head.close_by, *owes]
    times += [head.finish_by, head.beat_by if head.state == State.STARTED else head.start_by]
    if head.start == Delivery.LEASED or (head.start == Delivery.DUE and not head.blocked):
        times.append(head.start_at)
    return min((at for at in times if at), default=inf)


def faults(snapshot: Snapshot) -> list[str]:
    """Everything that does not fit; I14, I25, I32 and I33 of the promise, and no key without an owner."""
    found = [f"key {name} belongs to nothing" for name in snapshot.foreign]
    for kept in snapshot.operations.values():
        found += [f"operation {kept.id}: {fault}" for fault in (*_of_record(kept), *_of_history(kept))]
        found += [f"operation {kept.id}: {fault}" for fault in _of_indexes(kept, snapshot)]
    found += _orphans(snapshot)
    found += _of_durable(snapshot)
    found += _of_slots(snapshot)
    return found


def _of_record(kept: Kept) -> Iterator[str]:  # noqa: C901, PLR0912 - one sentence per rule
    head, state = kept.head, kept.state
    beaten = head.start == Delivery.LEASED and head.beat_by > 0
    if (head.owner != "") != kept.leased and not (beaten and not head.owner):
        yield f"owner {head.owner!r} does not say who leases its deliveries"
    if ("r" in kept.fields) != state.terminal:
        yield f"an outcome is kept in state {state.word}, or missing"
    if (head.closed_at > 0) != state.terminal:
        yield f"closed_at {head.closed_at} in state {state.word}"
    if "q" not in kept.fields:
        yield "the request is missing"
    if state.terminal and head.start in OWED:
        yield "ended, and its start is still owed"
    out = state is State.STARTED and not head.suspended
    if out and (head.start != Delivery.DELIVERED or not ("t" in kept.fields or head.instance)):
        yield "started without a delivered start and the agent's token, or who fetched it"
    if out and head.instance and (head.beat_by == 0 or head.owner):
        yield f"fetched by {head.instance} without a lease, or held by {head.owner!r}"
    if not 0 <= head.resumes <= head.attempt:
        yield f"{head.resumes} of {head.attempt} attempts count against nothing"
    if state is State.SCHEDULED and head.start not in OWED:
        yield "scheduled, and no start is owed"
    if state is State.BACKING_OFF and (head.start != Delivery.DUE or head.blocked):
        yield "backing off without a start that is due later"
    if head.blocked and (state is not State.SCHEDULED or head.start != Delivery.DUE):
        yield f"blocked by {head.blocked} in state {state.word} with start {Delivery(head.start).word}"
    if head.slot and not (state is State.STARTED or head.start == Delivery.LEASED):
        yield "holds a slot while nothing of it is out there"
    if (head.callback != Delivery.NONE) != (state.terminal and head.wants_callback > 0):
        yield f"callback is {Delivery(head.callback).word} in state {state.word}"
    if head.cancel != Delivery.NONE and not head.cancel_asked and state is not State.TIMED_OUT:
        yield "a cancel is owed that nobody asked for"


def _of_history(kept: Kept) -> Iterator[str]:  # noqa: C901, PLR0912 - one sentence per rule
    """The events are 1..n, their stamps never step back, and they walk through the machine to the present state."""
    head = kept.head
    if not kept.events or kept.events[0].code != EventKind.ACCEPTED:
        yield "the history does not begin with its acceptance"
    if len(kept.events) != head.seq:
        yield f"{len(kept.events)} events and sequence number {head.seq}"
    state, attempt, stamp = State.SCHEDULED, 0, 0
    for event in kept.events[1:]:
        kind = EventKind(event.code)
        if event.after_ms < stamp:
            yield f"{kind.word} is stamped {event.after_ms} after {stamp}"
        stamp = event.after_ms
        if kind in HISTORY:
            cell = OPERATION[state].get(HISTORY[kind])
            if not isinstance(cell, Move):
                yield f"{kind.word} cannot happen in state {state.word}"
                return
            state = State(cell.to)
        elif kind.name.startswith("CALLBACK_") and not state.terminal:
            yield f"{kind.word} before the end"
        if kind is EventKind.STARTED and event.attempt > attempt:
            # One that was fetched: dispatched and started in one.
            if event.attempt != attempt + 1:
                yield f"attempt {event.attempt} fetched after attempt {attempt}"
            attempt = event.attempt
        if kind is EventKind.DISPATCHED:
            # A released attempt gives its number back, hence the same number may be dispatched again.
            if event.attempt not in (attempt, attempt + 1) or event.attempt == 0:
                yield f"attempt {event.attempt} dispatched after attempt {attempt}"
            attempt = event.attempt
    if state is not kept.state:
        yield f"the history leads to {state.word}, the record says {kept.state.word}"
    if stamp != head.stamp:
        yield f"stamp {head.stamp}, the last event says {stamp}"


def _of_indexes(kept: Kept, snapshot: Snapshot) -> Iterator[str]:
    head = kept.head
    timers = {owner: scores[kept.id] for owner, scores in snapshot.timers.items() if kept.id in scores}
    if timers != {head.owner: next_look(head)}:
        yield f"timers {timers}, expected {next_look(head)} of {head.owner!r}"
    if head.owner and head.owner not in snapshot.sessions:
        yield f"held by {head.owner}, which is no listed session: nobody will look"
    lines = [endpoint for endpoint, line in snapshot.waiting.items() if kept.id in line]
    apart = head.pin and head.blocked in ("no_version", "busy")
    line = f"{head.endpoint}|{head.pin}" if apart else head.endpoint
    if lines != ([line] if head.blocked else []):
        yield f"blocked {head.blocked!r} and in the lines of {lines}"
    places = {name: line[kept.id] for name, line in snapshot.line.items() if kept.id in line}
    due = head.created_at + head.delay_ms - head.priority * LEVEL_MS
    if places != ({f"{line}:{head.namespace}": due} if head.blocked else {}):
        yield f"blocked {head.blocked!r} and at {places} in the lines of namespaces"
    if snapshot.index.get(head.namespace, {}).get(kept.id) != head.created_at:
        yield "not in its namespace's index at the time of its acceptance"
    key = kept.content.key
    if key and snapshot.idempotency.get(key) != kept.id:
        yield f"its idempotency key leads to {snapshot.idempotency.get(key)}"
    for kind, delivery in (("cancel", head.cancel), ("callback", head.callback)):
        listed = f"{kept.id}.{head.run}.{kind}" in snapshot.dead.get(head.namespace, {})
        if listed != (delivery == Delivery.DEAD):
            yield f"its {kind} is {Delivery(delivery).word} and {'' if listed else 'not '}listed as dead"


def _orphans(snapshot: Snapshot) -> Iterator[str]:
    known = snapshot.operations
    for owner, scores in snapshot.timers.items():
        yield from (f"timer of {owner!r} for unknown {one}" for one in scores if one not in known)
    for name in ("index", "waiting"):
        for part, scores in getattr(snapshot, name).items():
            yield from (f"{name} {part} lists unknown {one}" for one in scores if one not in known)
    for namespace, scores in snapshot.dead.items():
        yield from (f"dead {namespace} lists {one}" for one in scores if one.split(".")[0] not in known)
    for key, one in snapshot.idempotency.items():
        if one not in known or known[one].content.key != key:
            yield f"idempotency key {key} leads to {one}, which does not have it"
    for place in snapshot.waiting:
        if place.partition("|")[0] not in snapshot.waiting_endpoints:
            yield f"nobody is told that operations wait for {place}"
    yield from _turns(snapshot)
    for one in (snapshot.instances | snapshot.catalog) - snapshot.endpoints.keys():
        yield f"registry rows of unknown endpoint {one}"


def _turns(snapshot: Snapshot) -> Iterator[str]:
    """Each namespace in line takes turns or is parked; who is out of turns owes something to those who are not."""
    of = [{(one, ns) for one, all_ in index.items() for ns in all_} for index in (snapshot.turns, snapshot.parked)]
    lines = {(name.partition(":")[0], name.partition(":")[2]) for name in snapshot.line}
    if of[0] & of[1] or of[0] | of[1] != lines:
        yield f"in line are {lines}, taking turns {of[0]}, parked {of[1]}"
    for endpoint, debts in snapshot.debts.items():
        turns = snapshot.turns.get(endpoint, {})
        if not turns or debts.keys() & turns.keys():
            yield f"debts {debts} beside turns {turns}"


def _of_durable(snapshot: Snapshot) -> Iterator[str]:
    known = snapshot.operations
    for kind in ("journals", "streams", "children", "unfinished"):
        yield from (f"{kind} of unknown {one}" for one in getattr(snapshot, kind) if one not in known)
    for one, lines in [*snapshot.journals.items(), *snapshot.streams.items()]:
        if any(later.after_ms < line.after_ms for line, later in pairwise(lines)):
            yield f"the entries of {one} are stamped backwards"
        if [line.total for line in lines] != [*accumulate(len(line.body) for line in lines)]:
            yield f"the bytes of {one} are miscounted"
    for kept in known.values():
        yield from (f"operation {kept.id}: {fault}" for fault in _of_journal(kept, snapshot))


def _of_journal(kept: Kept, snapshot: Snapshot) -> Iterator[str]:
    head, state, lines = kept.head, kept.state, snapshot.journals.get(kept.id, [])
    if (lines or snapshot.streams.get(kept.id) or head.suspended) and not head.journal:
        yield "it does not know of its journal"
    if head.suspended and (head.start != Delivery.DUE or state.terminal or state is State.BACKING_OFF):
        yield f"suspended in state {state.word}"
    if head.suspended and (head.slot or head.beat_by or head.finish_by):
        yield "suspended, and it holds a slot or runs against a clock"
    if any(event.journal > len(lines) for event in kept.events):
        yield "an event stands behind an entry that is not there"
    # One sequence: each event after the entries that it names, its time not before theirs.
    for event in kept.events:
        if event.journal and lines[event.journal - 1].after_ms > event.after_ms:
            yield f"event {event.code} is stamped before the entry that it follows"
    parent = head.parent.partition(".")[0]
    listed = snapshot.children.get(parent, {}).get(kept.id)
    if parent in snapshot.operations and listed != head.created_at:
        yield f"its parent lists it at {listed}"
    live = parent in snapshot.operations and kept.id in snapshot.unfinished.get(parent, ())
    if live and state.terminal:
        yield "it ended, and its parent would still cancel it"
    if head.children == 2 and not state.terminal:
        yield "its children are to be told of an end that did not come"


def _of_slots(snapshot: Snapshot) -> Iterator[str]:
    for endpoint, facts in snapshot.endpoints.items():
        taken = sum(1 for kept in snapshot.operations.values() if kept.head.endpoint == endpoint and kept.head.slot)
        if int(facts["run"]) != taken:
            yield f"endpoint {endpoint} counts {facts['run']} running, {taken} hold a slot"
        of = Counter(kept.head.namespace for kept in snapshot.operations.values()
                     if kept.head.endpoint == endpoint and kept.head.slot)  # fmt: skip
        if +of != +Counter({key[4:]: int(count) for key, count in facts.items() if key.startswith("run:")}):
            yield f"endpoint {endpoint} counts {facts} running, {of} hold a slot"
