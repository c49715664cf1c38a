"""The oracle's ground: an operation, what can be seen by looking at all of them, and the steps that several verbs take.

One endpoint, some operations, and time as a number. There are no indexes here: who waits, who runs, what is due and
who holds what is found by looking at every operation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from mesh.machine import Delivery, Kind, State
from mesh.store.verbs import ChildStart, Start
from tests.model.turns import LIMITED, Turns

DEAD_AFTER_MS: Final = 3_000
DEAD_MS: Final = 72 * 3_600_000
NEVER_MS: Final = 10**15
"""A timer from here on is none (library.LIMITS)."""
"""How long a dead letter is kept at least."""
DELIVERY_LEASE_MS: Final = 35_000
OWED: Final = (Delivery.DUE, Delivery.LEASED)

Sent = tuple[str, Kind, int]
"""Leased work: operation, kind, number of the attempt or try."""


@dataclass
class Owe:
    """A cancel or callback."""

    is_: Delivery = Delivery.NONE
    at: int = 0
    tries: int = 0


@dataclass
class Op:
    """An operation. Times in ms, 0 = none."""

    order: Start
    created: int
    state: State = State.SCHEDULED
    attempt: int = 0
    owner: str = ""
    instance: str = ""
    """Who fetched the last attempt; '' when it was sent."""
    blocked: str = ""
    slot: int = 0
    """0 not counted, 1 counted, 2: counted where its namespace has a limit."""
    start: Delivery = Delivery.DUE
    start_at: int = 0
    cancel: Owe = field(default_factory=Owe)
    callback: Owe = field(default_factory=Owe)
    always: bool = False
    """The callback is owed even when the first request is answered with the outcome."""
    close_by: int = 0
    start_by: int = 0
    finish_by: int = 0
    beat_by: int = 0
    beat_ms: int = 0
    """The length of the last lease named by any attempt; above 0 the work counts as leased."""
    leased: bool = False
    """Whether the present attempt has begun a lease."""
    cancel_asked: bool = False
    refused: int = 0
    """The highest attempt of which a late step was refused."""
    durable: bool = False
    """It keeps a journal, be it empty."""
    journal: list[tuple[Any, ...]] = field(default_factory=list)
    """What stands in it: ("step", attempt, body), or ("child", state, operation, key, outcome)."""
    suspended: int = 0
    resumes: int = 0
    parent: str = ""
    unfinished: set[str] = field(default_factory=set)
    """Those of its children that are not to outlive it."""
    children: int = 0
    """As in the record: 0 none, 1 some, 2 ended with children to be told, 3 told."""
    priority: int = 0
    turns: Turns | None = None
    """To be told when it enters or leaves the line, or gives its slot back."""
    closed: int = 0
    outcome: bytes | tuple[str, str] | None = None
    token: str = ""
    history: list[tuple[str, int, int]] = field(default_factory=list)
    """(event, attempt, entries in its journal)."""

    def __setattr__(self, name: str, value: Any) -> None:
        was = self.__dict__.get(name)
        object.__setattr__(self, name, value)
        if self.__dict__.get("turns") is None or name not in ("blocked", "slot") or bool(was) == bool(value):
            return
        assert self.turns is not None
        if name == "slot":
            self.turns.took(self) if value else self.turns.freed(self, own=was == 2)
        else:
            self.turns.enter(self) if value else self.turns.leave(self)

    @property
    def id(self) -> str:
        return self.order.id

    @property
    def order_key(self) -> str:
        """What its parent's journal calls it."""
        return self.order.parent_key if isinstance(self.order, ChildStart) else ""

    @property
    def could_begin(self) -> int:
        """Its place in the line."""
        return self.created + (self.order.delay_ms or 0)

    @property
    def owed(self) -> list[Owe]:
        return [one for one in (self.cancel, self.callback) if one.is_ in OWED]

    @property
    def look_at(self) -> float:
        """When somebody must look at it next."""
        if self.state.terminal and self.children == 2:
            return self.closed
        if self.state.terminal:
            kept = [one.at + DEAD_MS for one in (self.cancel, self.callback) if one.is_ is Delivery.DEAD]
            return min((one.at for one in self.owed), default=max(self.closed + self.order.retention_ms, *kept, 0))
        times = [self.close_by, *[one.at for one in self.owed]]
        times += [self.finish_by, self.beat_by if self.state is State.STARTED else self.start_by]
        if self.start is Delivery.LEASED or (self.start is Delivery.DUE and not self.blocked):
            times.append(self.start_at)
        return min((at for at in times if at), default=inf)

    @property
    def spent(self) -> int:
        """Attempts that count: going on with suspended work is none."""
        return self.attempt - self.resumes - bool(self.suspended)

    @property
    def is_out(self) -> bool:
        """Whether a handler may be at work on the present attempt."""
        return not self.state.terminal and self.state is not State.BACKING_OFF and self.start is not Delivery.DUE

    @property
    def held(self) -> bool:
        """Whether the present attempt is out, and was fetched: whoever has it has no address."""
        return self.state is State.STARTED and self.start is Delivery.DELIVERED and self.instance != ""

    @property
    def kept(self) -> bool:
        """Whether its gateway is gone before it booked an answer, and its agent beats."""
        return self.start is Delivery.LEASED and not self.owner

    def beaten(self, at: int) -> None:
        """Its agent lives at `at`."""
        self.leased, self.beat_by = True, at + self.beat_ms
        if self.kept:
            self.start_at = self.beat_by

    def note(self, event: str) -> None:
        self.history.append((event, self.attempt, len(self.journal)))

    def note_refused(self, attempt: int) -> None:
        """Something of an attempt that was given up was refused; shown once per attempt."""
        if attempt > self.refused:
            self.refused = attempt
            self.history.append(("refused", attempt, len(self.journal)))

    def let_go(self) -> None:
        """Nobody holds an operation of which nothing is leased."""
        if Delivery.LEASED not in (self.start, self.cancel.is_, self.callback.is_):
            self.owner = ""


class Ground:
    """All operations, the sessions and the endpoint's settings."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.ops: dict[str, Op] = {}
        self.sessions: dict[str, int] = {}
        self.limit = 0
        self.turns = Turns()
        self.pulls = False
        self.paused = False
        self.gone = False

    # What can be seen by looking

    @property
    def running(self) -> int:
        return sum(op.slot > 0 for op in self.ops.values())

    @property
    def line(self) -> list[Op]:
        return sorted((op for op in self.ops.values() if op.blocked), key=lambda op: (op.could_begin, op.id))

    def held(self, session: str) -> set[str]:
        return {op.id for op in self.ops.values() if op.owner == session}

    def hindrance(self) -> str:
        """Why nothing more can be sent now."""
        if self.gone:
            return "endpoint_deleted"
        if self.paused:
            return "paused"
        if self.limit and self.running >= self.limit:
            return "concurrency"
        return ""

    def hindrance_outside(self, namespace: str) -> str:
        """The same for one that is not in line: nobody there may be passed."""
        turns = self.turns
        if reason := self.hindrance() or turns.own_limit(namespace):
            return reason
        if turns.share(namespace).max and namespace in turns.line:
            return "namespace_concurrency"
        return "concurrency" if self.limit and turns.at else ""

    def next_in_turn(self) -> Op | None:
        """Whose turn it is; who waits at its own limit says so."""
        op, parked = self.turns.next(self.now)
        for one in parked:
            self.show(one, "namespace_concurrency")
        return op

    def show(self, op: Op, reason: str) -> None:
        """Why it waits; which of the limits it was at a moment is not told each time."""
        if op.blocked != reason and not (op.blocked in LIMITED and reason in LIMITED):
            self.block(op, reason)

    # Steps that several verbs take

    def dispatch(self, op: Op, session: str) -> None:
        op.slot = self.turns.slot(op, self.limit)
        self.turns.charge(op)
        op.state, op.start, op.owner, op.blocked = State.SCHEDULED, Delivery.LEASED, session, ""
        op.attempt += 1
        op.instance = ""
        op.resumes += bool(op.suspended)
        op.suspended = 0
        if op.cancel_asked:
            self.drop_cancel(op)
        op.start_at = self.now + op.order.lease_ms
        op.leased, op.beat_by = False, 0
        op.note("dispatched")

    @staticmethod
    def drop_cancel(op: Op) -> None:
        if op.cancel.is_ in OWED:
            op.cancel.is_ = Delivery.DROPPED

    def block(self, op: Op, reason: str) -> None:
        op.state, op.blocked = State.SCHEDULED, reason
        op.note("blocked")

    def lose(self, op: Op) -> None:
        """Whoever had the attempt is silent: it is spent, the next one is due."""
        op.state, op.start, op.start_at, op.slot = State.SCHEDULED, Delivery.DUE, self.now, 0
        op.beat_by = op.finish_by = 0
        op.note("attempt_lost")

    def settle(self, op: Op, state: State, outcome: bytes | tuple[str, str]) -> None:
        op.state, op.outcome, op.closed, op.blocked, op.slot = state, outcome, self.now, "", 0
        op.suspended = 0
        op.children = 2 if op.children else 0
        if op.start in OWED:
            op.start = Delivery.DROPPED
        if state is not State.TIMED_OUT:
            self.drop_cancel(op)
        op.note(state.word)
        if op.order.callback:
            op.callback.is_, op.callback.at = Delivery.DUE, self.now
        op.let_go()
        parent = self.ops.get(op.parent)
        if parent is not None:
            parent.unfinished.discard(op.id)
            if not parent.state.terminal:
                parent.journal.append(("child", state, op.id, op.order_key, outcome))
                parent.durable = True
                if parent.suspended:
                    parent.start_at = min(parent.start_at or self.now, self.now)

    def lease(self, op: Op, owe: Owe, session: str) -> bool:
        """Leased to a session that lives; else it stays due."""
        if session not in self.sessions:
            return False
        owe.is_, owe.at = Delivery.LEASED, self.now + DELIVERY_LEASE_MS
        owe.tries += 1
        op.owner = session
        return True

    def owe_cancel(self, op: Op, session: str) -> Sent | None:
        if op.cancel.is_ not in (Delivery.NONE, Delivery.DROPPED):
            return None
        op.cancel.is_, op.cancel.at = Delivery.DUE, self.now
        return (op.id, Kind.CANCEL, op.cancel.tries) if self.lease(op, op.cancel, session) else None

    # Sessions

    def beat(self, session: str, *, join: bool, replaces: str) -> tuple[bool, int]:
        """Whether it is alive, and how many are listed."""
        if session not in self.sessions and not join:
            return False, 0
        if self.sessions and self.now - max(self.sessions.values()) > DEAD_AFTER_MS * 2 / 3:
            self.sessions = dict.fromkeys(self.sessions, self.now)
        self.sessions[session] = self.now
        dead = {other for other, at in self.sessions.items() if at <= self.now - DEAD_AFTER_MS}
        if replaces:
            dead |= {other for other in self.sessions if other != session and other.startswith(replaces)}
        for other in dead:
            self.hand_back(other, self.held(other))
            del self.sessions[other]
        return True, len(self.sessions)

    def leave(self, session: str) -> None:
        self.hand_back(session, self.held(session))
        self.sessions.pop(session, None)

    def hand_back(self, session: str, ids: set[str]) -> None:
        for one in ids & self.held(session):
            op = self.ops[one]
            if op.start is Delivery.LEASED and op.beat_by > self.now:
                op.owner, op.start_at, op.start_by = "", op.beat_by, 0
                op.finish_by = self.now + op.order.run_ms if op.order.run_ms else 0
            elif op.start is Delivery.LEASED:
                self.lose(op)
            for owe in (op.cancel, op.callback):
                if owe.is_ is Delivery.LEASED:
                    owe.is_, owe.at = Delivery.DUE, self.now
            op.let_go()
