"""Both sides at once: one call to the real store and to the reference, and the replies compared.

Owns the clock that both read and the form in which a record is compared. Knows no gateways: who calls, and what becomes
of a reply, is machine.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from math import inf
from typing import Any, Final, TypeVar

from mesh.machine import Delivery, Event, Kind, State
from mesh.store.layout import Line, decode_outcome
from mesh.store.library import source
from mesh.store.link import Link
from mesh.store.pulls import Ended, PullStore, Released, Retried, Taken
from mesh.store.starting import BacklogFull, NoEndpoint, NoSession, OtherParent, ParentLost
from mesh.store.verbs import Accepted, Append, Completed, Seat, Start, Suspend, Task, Work
from tests.model.fetching import Fetched
from tests.model.fixtures import ENDPOINT, GIVEN_UP, NS, Room
from tests.model.ground import Op, Sent
from tests.model.reference import Reference
from tests.model.snapshot import Kept, Snapshot, faults, take
from tests.model.turns import Share

BEGIN_MS: Final = 1_700_000_000_000
DELAY_MS: Final = 1_000
"""Back-off of whatever failed."""

THEIRS: Final = "redis_call('TIME')"
OURS: Final = "redis_call('HMGET', 'clock', 's', 'us')"

Reply = TypeVar("Reply")


def clocked(text: str) -> str:
    """The library with the clock in our hands."""
    assert text.count(THEIRS) == 1
    return text.replace(THEIRS, OURS)


def sent(work: Work | None) -> Sent | None:
    """What of leased work both sides can tell."""
    if work is None:
        return None
    head = work.head
    number = {Kind.START: head.attempt, Kind.CANCEL: head.cancel_tries, Kind.CALLBACK: head.callback_tries}[work.kind]
    return work.id, work.kind, number


def _owed(delivery: int, tries: int, at: int) -> tuple[int, int, int]:
    """The time of a delivery counts only while it is owed."""
    return delivery, tries, at if delivery in (Delivery.DUE, Delivery.LEASED) else 0


def of_store(kept: Kept) -> dict[str, Any]:
    """What is compared of a record."""
    head, packed = kept.head, kept.fields.get("r")
    outcome = None if packed is None else _outcome(packed)
    return {
        "state": kept.state, "attempt": head.attempt, "owner": head.owner, "blocked": head.blocked,
        "slot": head.slot > 0, "instance": head.instance, "start": _owed(head.start, 0, head.start_at),
        "cancel": _owed(head.cancel, head.cancel_tries, head.cancel_at),
        "callback": _owed(head.callback, head.callback_tries, head.callback_at),
        "deadlines": (head.close_by, head.start_by, head.finish_by, head.beat_by)
        if kept.state is State.STARTED else (head.close_by, head.start_by),
        "always": head.wants_callback == 2, "leased": (abs(head.beat_ms), head.beat_ms > 0),
        "asked": head.cancel_asked == 1, "closed": head.closed_at,
        "outcome": outcome, "token": kept.fields.get("t", b"").decode(),
        "history": [(word, event.attempt, event.journal) for word, event in zip(kept.words, kept.events, strict=True)],
        "durable": (head.journal == 1, head.suspended, head.resumes, head.refused, head.children),
        "parent": head.parent.partition(".")[0],
    }  # fmt: skip


def of_reference(op: Op) -> dict[str, Any]:
    """The same of the reference."""
    return {
        "state": op.state, "attempt": op.attempt, "owner": op.owner, "blocked": op.blocked,
        "slot": op.slot > 0, "instance": op.instance, "start": _owed(op.start, 0, op.start_at),
        "cancel": _owed(op.cancel.is_, op.cancel.tries, op.cancel.at),
        "callback": _owed(op.callback.is_, op.callback.tries, op.callback.at),
        "deadlines": (op.close_by, op.start_by, op.finish_by, op.beat_by)
        if op.state is State.STARTED else (op.close_by, op.start_by),
        "always": op.always, "leased": (op.beat_ms, op.leased),
        "asked": op.cancel_asked, "closed": op.closed,
        "outcome": op.outcome, "token": op.token,
        # A history says where it stands in a journal only once there is one.
        "history": op.history,
        "durable": (op.durable, op.suspended, op.resumes, op.refused, op.children),
        "parent": op.parent,
    }  # fmt: skip


def lines_of_store(lines: Sequence[Line]) -> list[tuple[Any, ...]]:
    """What is compared of a journal."""
    return [
        ("step", line.attempt, line.body)
        if line.child is None
        else ("child", State(line.child[0]), line.child[1], line.child[2], _outcome(line.body))
        for line in lines
    ]


def _outcome(packed: bytes) -> Any:
    if packed == GIVEN_UP:
        return packed
    decoded = decode_outcome(packed)
    return (decoded.kind, decoded.reason) if decoded.kind == "mesh" else packed


def _differences(store: dict[str, Any], reference: dict[str, Any]) -> list[Any]:
    """(operation, field, the store's, the reference's)."""
    return [
        (one, name, store.get(one, {}).get(name), reference.get(one, {}).get(name))
        for one in store.keys() | reference.keys()
        for name in store.get(one, {}).keys() | reference.get(one, {}).keys()
        if store.get(one, {}).get(name) != reference.get(one, {}).get(name)
    ]


def _said(reply: Completed | Taken) -> tuple[str, Sent | None]:
    return (reply.verdict, None) if isinstance(reply, Taken) else (reply.verdict, sent(reply.callback))


class Sides:
    """The store and its reference. Every verb returns the works that the store leased in it.

    Attempts that it handed to agents are apart: `handed` says which, once.
    """

    def __init__(self, runner: asyncio.Runner, link: Link) -> None:
        self._runner = runner
        self._room = Room(link)
        self._ends: dict[str, tuple[Any, ...]] = {}
        self._handed: list[Fetched] = []
        self.model = Reference(BEGIN_MS)
        self.run(link.call("FLUSHALL"))
        self.run(link.call("FUNCTION", "LOAD", "REPLACE", clocked(source())))
        self.time_passes(0)
        self.put_endpoint(0, pulls=False)

    def run(self, call: Awaitable[Reply]) -> Reply:
        async def wait() -> Reply:
            return await call

        return self._runner.run(wait())

    def snapshot(self) -> Snapshot:
        return self.run(take(self._room.link))

    def agree(self) -> Snapshot:
        """Both sides say the same, the store fits together, and what ended stays as it is (I14)."""
        snapshot = self.snapshot()
        found = faults(snapshot)
        assert found == [], found
        ours = {one: of_reference(op) for one, op in self.model.ops.items()}
        theirs = {one: of_store(kept) for one, kept in snapshot.operations.items()}
        assert theirs == ours, _differences(theirs, ours)
        journals = {one: lines_of_store(lines) for one, lines in snapshot.journals.items()}
        assert journals == {one: op.journal for one, op in self.model.ops.items() if op.journal}
        unfinished = {one: op.unfinished for one, op in self.model.ops.items() if op.unfinished}
        assert snapshot.unfinished == unfinished
        assert snapshot.sessions == self.model.sessions
        assert int(snapshot.endpoints[ENDPOINT]["run"]) == self.model.running
        turns = self.model.turns
        theirs_in_turn = [one.get(ENDPOINT, {}) for one in (snapshot.turns, snapshot.debts, snapshot.parked)]
        assert theirs_in_turn == [turns.at, turns.debts, turns.parked]
        for one, kept in snapshot.operations.items():
            if kept.state.terminal:
                end = (kept.state, kept.fields["r"], kept.head.closed_at)
                assert self._ends.setdefault(one, end) == end
        return snapshot

    # Callers

    def order(self, key: str, content: str, session: str, **fields: Any) -> Start:
        return self._room.order(key, content, session=session, **fields)

    def start(self, order: Start, seat: tuple[str, int] | None = None) -> list[Sent]:
        expected = self.model.begin(order, seat)
        try:
            got: Any = self.run(self._room.start(order, seat=PullStore.seat(*seat) if seat else ()))
        except NoEndpoint:
            got = "no endpoint"
        except NoSession:
            got = "no session"
        except ParentLost:
            got = "parent lost"
        except OtherParent:
            got = "other parent"
        except BacklogFull:
            got = "backlog"
        assert got == expected
        if not isinstance(expected, Accepted) or not expected.attempt:
            return []
        if expected.fetched:
            self._handed.append((order.id, 1))
            return []
        return [(order.id, Kind.START, 1)]

    def cancel(self, one: str, session: str) -> list[Sent]:
        expected = self.model.cancel(one, session)
        moved = self.run(self._room.store.cancel(one, self._namespace(one), session))
        assert (("unknown", None) if moved is None else (moved.verdict, sent(moved.work))) == expected
        return [expected[1]] if expected[1] else []

    def redeliver(self, one: str, kind: Kind) -> list[Sent]:
        expected = self.model.redeliver(one, kind)
        assert self.run(self._room.store.redeliver(one, 1, kind, self._namespace(one))) == expected
        return []

    def _namespace(self, one: str) -> str:
        return self.model.ops[one].order.ns if one in self.model.ops else NS

    # Agents

    def started(self, one: str, attempt: int, session: str, beat_ms: int) -> list[Sent]:
        token = f"token-{attempt}"
        expected = self.model.started(one, attempt, session, token, beat_ms)
        moved = self.run(self._room.store.started(one, 1, attempt, session, token, beat_ms))
        assert (moved.verdict, sent(moved.work)) == expected
        return [expected[1]] if expected[1] else []

    def complete(
        self, one: str, attempt: int, event: Event, outcome: bytes, session: str, *, answered: bool = False
    ) -> list[Sent]:
        expected = self.model.complete(one, attempt, event, outcome, session, answered=answered)
        call = self._room.store.complete(one, 1, attempt, event, outcome, session=session, answered=answered)
        got = self.run(call)
        assert (got.verdict, sent(got.callback)) == expected
        return [expected[1]] if expected[1] else []

    def retry(self, one: str, attempt: int, session: str) -> list[Sent]:
        expected = self.model.retry(one, attempt, DELAY_MS, GIVEN_UP)
        call = self._room.store.retry(one, 1, attempt, delay_ms=DELAY_MS, detail="503", outcome=GIVEN_UP)
        assert self.run(call).verdict == expected
        return []

    def release(self, one: str, attempt: int, session: str) -> list[Sent]:
        expected = self.model.release(one, attempt, "unreachable", session)
        call = self._room.store.release(one, 1, attempt, "unreachable", session=session)
        assert self.run(call).verdict == expected
        return []

    def heartbeat(self, tasks: list[Task]) -> list[Sent]:
        expected = [self.model.heartbeat(task) for task in tasks]
        assert self.run(self._room.store.heartbeat(tasks)) == expected
        return []

    def append(self, task: Append) -> list[Sent]:
        expected = self.model.append(task)
        _, (step,) = self.run(self._room.store.append("journal", [task]))
        assert (step.status, step.length) == expected
        return []

    def suspend(self, task: Suspend) -> list[Sent]:
        expected = self.model.suspend(task)
        _, (step,) = self.run(self._room.store.suspend([task]))
        assert (step.status, step.length) == expected
        return []

    # Agents that poll

    def handed(self) -> list[Fetched]:
        """What was handed out since the last time."""
        handed, self._handed = self._handed, []
        return handed

    def pull(self, instance: str, count: int, lease_ms: int) -> list[Sent]:
        expected, stopped = self.model.pull(instance, count, lease_ms)
        got = self.run(self._room.pulls.pull(ENDPOINT, [Seat(instance, count, lease_ms)], ()))
        assert ([(work.id, work.head.attempt, who) for work, who in got.works], got.stopped) == (
            [(*one, instance) for one in expected], stopped
        )  # fmt: skip
        self._handed += expected
        return []

    def answers(self, answers: list[Ended | Retried | Released], session: str) -> list[Sent]:
        """Each as if it were alone, in their order."""
        expected = [self._answer(answer, session) for answer in answers]
        replies = self.run(self._room.pulls.answers(answers, session=session, alone=False))
        assert [_said(reply) for reply in replies] == expected
        return [work for _, work in expected if work]

    def _answer(self, answer: Ended | Retried | Released, session: str) -> tuple[str, Sent | None]:
        one, attempt = answer.id, answer.attempt
        if isinstance(answer, Ended):
            return self.model.complete(one, attempt, answer.event, answer.outcome, session, answered=answer.answered)
        if isinstance(answer, Retried):
            return self.model.retried(one, attempt, answer.least_ms, answer.outcome), None
        return self.model.released(one, attempt), None

    # Couriers

    def claim(self, session: str, count: int) -> list[Sent]:
        expected = self.model.claim(session, count)
        try:
            got = self.run(self._room.store.claim(session, count))
        except NoSession:
            assert expected == "no session"
            return []
        assert not isinstance(expected, str)
        works, ended, look_at = expected
        next_at = inf if got.next_at_ms is None else got.next_at_ms
        assert ([sent(work) for work in got.works], got.ended, next_at) == (works, ended, look_at)
        assert got.lines == ([ENDPOINT] if self.model.line else [])
        return works

    def unblock(self, session: str, count: int, reason: str, *, probe: bool) -> list[Sent]:
        expected = self.model.unblock(session, count, reason, probe=probe)
        try:
            works, stopped = self.run(self._room.store.unblock(ENDPOINT, session, count, reason, probe=probe))
        except NoSession:
            assert expected == "no session"
            return []
        assert not isinstance(expected, str)
        assert ([sent(work) for work in works], stopped) == expected
        return expected[0]

    def deliver(self, one: str, kind: Kind, tries: int, how: str) -> list[Sent]:
        """`delivered`, `deferred` or `dead`."""
        if how == "delivered":
            self.model.delivered(one, kind)
            self.run(self._room.store.delivered(one, 1, kind))
        else:
            dead = how == "dead"
            expected = self.model.defer(one, kind, tries, DELAY_MS, dead=dead)
            call = self._room.store.defer(one, 1, kind, tries=tries, delay_ms=DELAY_MS, dead=dead, detail="503")
            assert self.run(call) == expected
        return []

    # Sessions

    def beat(self, session: str, *, join: bool, replaces: str) -> list[Sent]:
        expected = self.model.beat(session, join=join, replaces=replaces)
        beat = self.run(self._room.store.beat(session, join=join, replaces=replaces))
        assert (beat.alive, beat.sessions) == expected
        return []

    def leave(self, session: str) -> list[Sent]:
        self.model.leave(session)
        assert self.run(self._room.store.leave(session)) == 0
        return []

    def hand_back(self, session: str, ids: set[str]) -> list[Sent]:
        self.model.hand_back(session, ids)
        self.run(self._room.store.hand_back(session, sorted(ids)))
        return []

    # The world

    def time_passes(self, ms: int) -> None:
        self.model.now += ms
        seconds, rest = divmod(self.model.now, 1000)
        self.run(self._room.link.call("HSET", "clock", "s", seconds, "us", rest * 1000))

    def pause(self, *, paused: bool) -> None:
        if not self.model.gone:
            self.model.paused = paused
            self.run(self._room.catalog.endpoint_pause("work", NS, paused=paused))

    def put_endpoint(self, limit: int, *, pulls: bool, shares: dict[str, Share] | None = None) -> None:
        """Change the limits and the kind, or bring a deleted endpoint back, without its pause."""
        turns = self.model.turns
        if self.model.gone or (limit, pulls, shares or {}) != (self.model.limit, self.model.pulls, turns.shares):
            turns.limits_changed()
        if self.model.gone:
            self.model.gone = self.model.paused = False
        self.model.limit, self.model.pulls, turns.shares = limit, pulls, shares or {}
        limits = {one: f"0 {share.max} {share.weight} {share.cap}" for one, share in (shares or {}).items()}
        assert self.run(self._room.endpoint(max_concurrency=limit, pull=pulls, limits=limits)) == ENDPOINT

    def delete_endpoint(self) -> None:
        if not self.model.gone:
            self.model.gone = True
            self.run(self._room.catalog.endpoint_delete("work", NS, ""))
