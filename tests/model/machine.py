"""Two gateways at work on one store: the rules of the model test.

A gateway books every piece of work it was given once, or crashes. A call whose reply is lost cuts its gateway off until
the call was sent again: that is how the link heals. Every rule is a plain method with plain arguments, so that
hypothesis and a random walk can both drive it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.machine import Delivery, Event, Kind, State
from mesh.store.link import Link
from mesh.store.pulls import Ended, Released, Retried
from mesh.store.verbs import Append, ChildStart, Suspend, Task
from tests.model.fixtures import CANCELED, FAILURE, GIVEN_UP, NS, OTHER_RESULT, RESULT
from tests.model.ground import DEAD_MS, Sent
from tests.model.sides import Sides
from tests.model.turns import Share

OUTCOMES: Final = {
    "succeed": (Event.SUCCEED, RESULT),
    "succeed otherwise": (Event.SUCCEED, OTHER_RESULT),
    "fail": (Event.FAIL, FAILURE),
    "cancel": (Event.CANCEL, CANCELED),
}
REPLIES: Final = ("201", "201 and beat", "201 and beat", "retry", "retry", "release")
TAKES_MORE: Final = ("claim", "unblock", "pull")
"""Verbs whose repeat takes more work; what the lost reply took is found among what the session holds."""
ENTRIES: Final = ([b'{"kind":"step"}'], [b'{"kind":"step"}', b'{"kind":"timer"}'], [b'{"kind":"value"}'], [])
AT: Final = 1
"""A wake-up by the clock, where others are so and so much later."""
WAKES: Final = (0, 0, AT, 2_000, 20_000)
STEPS_MS: Final = (1, 10, 999, 1_000, 1_001, 2_000, 2_500, 3_001, 20_000, 36_000)
LIMITS: Final = (0, 1, 2)
SHARES: Final[tuple[dict[str, Share], ...]] = (
    {},
    {},
    {"*": Share(1), "b": Share(0, 3, 2)},
    {"c": Share(2, 2, 1)},
    {"*": Share(0, 1, 3)},
)
SEATS: Final = (None, ("a1", 30_000), ("a1", 1_500), ("a2", 30_000))
"""Agents that wait at the accepting gateway, and the leases they ask for."""
ANSWERS: Final = ("succeed", "succeed", "fail", "cancel", "retry", "retry later", "release")
RECENT: Final = 12
ROUNDS_MAX: Final = 100
"""More rounds than this to come to rest means that something is stuck."""

Thing = TypeVar("Thing")
who = st.integers(0, 1)
pick = st.integers(0, 5)
loss = st.sampled_from((False, False, False, True))
behind = st.sampled_from((0, 0, 0, 1))
some_ms = st.sampled_from((0, 0, 0, 3_000, 20_000))
ordered = {
    "key": st.sampled_from(("", "k1", "k2")),
    "content": st.sampled_from(("c1", "c1", "c2")),
    "callback": st.integers(0, 2),
    "attempts_max": st.sampled_from((0, 1, 2, 20)),
    "close_ms": some_ms,
    "start_ms": some_ms,
    "run_ms": some_ms,
    "lease_ms": st.sampled_from((1_500, 30_000)),
    "retention_ms": st.sampled_from((1, 60_000)),
    "blocked": st.sampled_from(("", "", "", "no_instance")),
    "ns": st.sampled_from((NS, NS, "b", "c")),
    "priority": st.sampled_from((0, 0, 1, 9)),
    "seat": st.sampled_from(SEATS),
    "delay_ms": st.sampled_from((msgspec.UNSET, msgspec.UNSET, msgspec.UNSET, 0, 2_000)),
}


def _recent(things: Sequence[Thing], index: int) -> Thing:
    """One of the last few, 0 the last: old ones have ended long ago and answer nothing new."""
    return things[-1 - index % min(len(things), RECENT)]


def _answer(one: str, attempt: int, how: str) -> Ended | Retried | Released:
    if how == "release":
        return Released(one, 1, attempt, "stopping")
    if how in OUTCOMES:
        return Ended(one, 1, attempt, *OUTCOMES[how], answered=False)
    return Retried(one, 1, attempt, "503", GIVEN_UP, 5_000 if how == "retry later" else 0, 0.0)


class Gateway:
    """A gateway process, as the store sees it: a session, work that it has not booked, perhaps a lost reply."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.births = 0
        self.session = ""
        self.works: list[Sent] = []
        self.cut: tuple[str, Callable[[], list[Sent]], int] | None = None
        """A call whose reply was lost: its verb, the call, and how many moves there were before it."""

    def be_born(self) -> None:
        self.births += 1
        self.session = f"{self.name}.s-{self.births}"


class StoreMachine(RuleBasedStateMachine):
    """Drive it rule by rule; `agree` after each, `teardown` at the end."""

    runner: ClassVar[asyncio.Runner]
    link: ClassVar[Link]

    def __init__(self) -> None:
        super().__init__()
        self.sides = Sides(self.runner, self.link)
        self.model = self.sides.model
        self.gateways = [Gateway("g1"), Gateway("g2")]
        self.ids: list[str] = []
        self.tokens: list[tuple[str, int]] = []
        """(operation, attempt) that some agent has."""
        self.moves = 0
        for gateway in self.gateways:
            self._join(gateway)

    def _send(self, gateway: Gateway, verb: str, call: Callable[[], list[Sent]], *, lose: bool = False) -> None:
        """Make a call; its works reach the gateway unless the reply is lost."""
        if gateway.cut is not None:
            return
        before = self.moves
        self.moves += 1
        works = call()
        if lose:
            self.sides.handed()
            gateway.cut = (verb, call, before)
        else:
            self._receive(gateway, works)

    def _receive(self, gateway: Gateway, works: list[Sent]) -> None:
        for token in self.sides.handed():
            assert token not in self.tokens, f"{token} was handed out before"
            self.tokens.append(token)
        for work in works:
            if work[1] is Kind.START:
                # I9: an attempt goes out once; a released one surely reached nobody and may go out again.
                assert (work[0], work[2]) not in self.tokens, f"{work} was sent before"
                self.tokens.append((work[0], work[2]))
            gateway.works.append(work)

    def _one(self, index: int) -> str:
        return _recent(self.ids, index)

    # Callers

    @initialize(count=st.integers(0, 4), limit=st.sampled_from(LIMITS), callback=st.integers(0, 1), pulls=st.booleans())
    def some_work(self, count: int, limit: int, callback: int, pulls: bool) -> None:
        """Not every walk begins with an empty store."""
        self.sides.put_endpoint(limit, pulls=pulls)
        for index in range(count):
            self.start(index % 2, "", "c1", lose=False, callback=callback, retention_ms=60_000)

    @rule(g=who, lose=loss, **ordered)
    def start(
        self, g: int, key: str, content: str, lose: bool, seat: tuple[str, int] | None = None, **fields: Any
    ) -> None:
        gateway = self.gateways[g]
        # Ids are repeatable, and out of order: whatever goes by age must not go by id.
        fields["id"] = f"00-{len(self.ids) * 7919 % 10_000:04d}"
        order = self.sides.order(key, content, gateway.session, **fields)
        self.ids.append(order.id)
        self._send(gateway, "start", lambda: self.sides.start(order, seat), lose=lose)

    @precondition(lambda self: self.ids)
    @rule(g=who, i=pick, lose=loss)
    def cancel(self, g: int, i: int, lose: bool) -> None:
        gateway, one = self.gateways[g], self._one(i)
        session = gateway.session
        self._send(gateway, "cancel", lambda: self.sides.cancel(one, session), lose=lose)

    @precondition(lambda self: self.ids)
    @rule(g=who, i=pick, kind=st.sampled_from((Kind.CANCEL, Kind.CALLBACK)), lose=loss)
    def redeliver(self, g: int, i: int, kind: Kind, lose: bool) -> None:
        one = self._one(i)
        self._send(self.gateways[g], "redeliver", lambda: self.sides.redeliver(one, kind), lose=lose)

    # Agents

    @precondition(lambda self: self.tokens)
    @rule(g=who, i=pick, how=st.sampled_from((*OUTCOMES,)), lose=loss)
    def complete_by_token(self, g: int, i: int, how: str, lose: bool) -> None:
        """Any attempt that ever went out may report at any time, also one given up long ago."""
        one, attempt = _recent(self.tokens, i)
        gateway = self.gateways[g]
        call = (one, attempt, *OUTCOMES[how], gateway.session)
        self._send(gateway, "complete", lambda: self.sides.complete(*call), lose=lose)

    @precondition(lambda self: self.tokens)
    @rule(g=who, i=pick, lease_ms=st.sampled_from((0, 2_000, 60_000)), lose=loss)
    def heartbeat(self, g: int, i: int, lease_ms: int, lose: bool) -> None:
        tasks = [
            Task(one, 1, attempt, lease_ms) for one, attempt in (_recent(self.tokens, i), _recent(self.tokens, i + 1))
        ]
        self._send(self.gateways[g], "heartbeat", lambda: self.sides.heartbeat(tasks), lose=lose)

    @precondition(lambda self: self.tokens)
    @rule(g=who, i=pick, behind=behind, what=st.sampled_from(ENTRIES), lose=loss)
    def append(self, g: int, i: int, behind: int, what: list[bytes], lose: bool) -> None:
        """Entries, from where the agent believes the journal to end."""
        one, attempt = _recent(self.tokens, i)
        at = max(self._journal(one) - behind, 0)
        task = Append(one, 1, attempt, at, what)
        self._send(self.gateways[g], "append", lambda: self.sides.append(task), lose=lose)

    @precondition(lambda self: self.tokens)
    @rule(
        g=who, i=pick, behind=st.sampled_from((0, 0, 0, 1)), wake=st.sampled_from(WAKES), told=st.booleans(), lose=loss
    )
    def suspend(self, g: int, i: int, behind: int, wake: int, told: bool, lose: bool) -> None:
        """The handler waits; `told`: it knows of a cancel."""
        one, attempt = _recent(self.tokens, i)
        at = max(self._journal(one) - behind, 0)
        if told and not wake:
            wake = 2_000  # nobody could end it any more
        task = Suspend(one, 1, attempt, at, wake, self.model.now + 5_000 if wake == AT else 0, int(told))
        self._send(self.gateways[g], "suspend", lambda: self.sides.suspend(task), lose=lose)

    def _journal(self, one: str) -> int:
        return len(self.model.ops[one].journal) if one in self.model.ops else 0

    @precondition(lambda self: self.tokens)
    @rule(g=who, i=pick, close=st.integers(0, 1), lose=loss, **ordered)
    def start_child(
        self,
        g: int,
        i: int,
        close: int,
        key: str,
        content: str,
        lose: bool,
        seat: tuple[str, int] | None = None,
        **fields: Any,
    ) -> None:
        """Any attempt that ever went out may try to start a child."""
        gateway = self.gateways[g]
        parent, attempt = _recent(self.tokens, i)
        fields["id"] = f"00-{len(self.ids) * 7919 % 10_000:04d}"
        plain = self.sides.order(f"{parent}/{key}" if key else "", content, gateway.session, **fields)
        order = ChildStart(
            **msgspec.structs.asdict(plain), parent=parent, parent_run=1, parent_attempt=attempt, parent_key=f"k{i}",
            parent_close=close,
        )  # fmt: skip
        self.ids.append(order.id)
        self._send(gateway, "start", lambda: self.sides.start(order, seat), lose=lose)

    # Agents that poll

    @rule(
        g=who,
        agent=st.sampled_from(("a1", "a2")),
        count=st.sampled_from((0, 1, 64)),
        lease_ms=st.sampled_from((1_500, 30_000)),
        lose=loss,
    )
    def pull(self, g: int, agent: str, count: int, lease_ms: int, lose: bool) -> None:
        """An agent polls at a gateway; a lost reply is also an agent that went away before it was written."""
        self._send(self.gateways[g], "pull", lambda: self.sides.pull(agent, count, lease_ms), lose=lose)

    @precondition(lambda self: self.tokens)
    @rule(g=who, i=pick, hows=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3), lose=loss)
    def answer(self, g: int, i: int, hows: list[str], lose: bool) -> None:
        """Agents say what became of attempts, whoever sent those and however long ago; many in one call."""
        session = self.gateways[g].session
        answers = [_answer(*_recent(self.tokens, i + place), how) for place, how in enumerate(hows)]
        self._send(self.gateways[g], "answers", lambda: self.sides.answers(answers, session), lose=lose)

    # Couriers

    @rule(g=who, count=st.sampled_from((64, 64, 1)), lose=loss)
    def claim(self, g: int, count: int, lose: bool) -> None:
        gateway = self.gateways[g]
        session = gateway.session
        self._send(gateway, "claim", lambda: self.sides.claim(session, count), lose=lose)

    @rule(g=who, count=st.sampled_from((64, 1)), reason=st.sampled_from(("", "", "breaker", "probe")), lose=loss)
    def unblock(self, g: int, count: int, reason: str, lose: bool) -> None:
        """`reason` "probe": not a reason, but the one that a half-open breaker is tried with."""
        gateway = self.gateways[g]
        session = gateway.session
        probe = reason == "probe"
        why = "" if probe else reason
        self._send(gateway, "unblock", lambda: self.sides.unblock(session, count, why, probe=probe), lose=lose)

    def _take(self, gateway: Gateway, kinds: tuple[Kind, ...], index: int) -> Sent | None:
        """One try that this gateway has under way; from here on it is booked."""
        works = [work for work in gateway.works if work[1] in kinds]
        if not works or gateway.cut is not None:
            return None
        work = works[index % len(works)]
        gateway.works.remove(work)
        return work

    @rule(g=who, i=pick, how=st.sampled_from((*OUTCOMES,)), answered=st.booleans(), lose=loss)
    def book_outcome(self, g: int, i: int, how: str, answered: bool, lose: bool) -> None:
        """The agent answered a start with its outcome."""
        gateway = self.gateways[g]
        work = self._take(gateway, (Kind.START,), i)
        if work is not None:
            call = (work[0], work[2], *OUTCOMES[how], gateway.session)
            self._send(gateway, "complete", lambda: self.sides.complete(*call, answered=answered), lose=lose)

    @rule(g=who, i=pick, how=st.sampled_from(REPLIES), lose=loss)
    def book_reply(self, g: int, i: int, how: str, lose: bool) -> None:
        """A 201, a fault worth repeating, or an attempt that reached nobody."""
        gateway = self.gateways[g]
        work = self._take(gateway, (Kind.START,), i)
        if work is None:
            return
        one, _, attempt = work
        session = gateway.session
        if how == "retry":
            self._send(gateway, "retry", lambda: self.sides.retry(one, attempt, session), lose=lose)
        elif how == "release":
            self.tokens.remove((one, attempt))
            self._send(gateway, "release", lambda: self.sides.release(one, attempt, session), lose=lose)
        else:
            beat_ms = 2_000 if how == "201 and beat" else 0
            self._send(gateway, "started", lambda: self.sides.started(one, attempt, session, beat_ms), lose=lose)

    @rule(g=who, i=pick, how=st.sampled_from(("delivered", "delivered", "deferred", "dead")), lose=loss)
    def book_delivery(self, g: int, i: int, how: str, lose: bool) -> None:
        gateway = self.gateways[g]
        work = self._take(gateway, (Kind.CANCEL, Kind.CALLBACK), i)
        if work is not None:
            self._send(gateway, how, lambda: self.sides.deliver(*work, how), lose=lose)

    # Sessions

    def _join(self, gateway: Gateway, *, replaces: bool = False) -> None:
        gateway.be_born()
        session, mine = gateway.session, f"{gateway.name}." if replaces else ""
        self._send(gateway, "join", lambda: self.sides.beat(session, join=True, replaces=mine))

    @rule(g=who, lose=loss)
    def beat(self, g: int, lose: bool) -> None:
        gateway = self.gateways[g]
        session, listed = gateway.session, gateway.session in self.model.sessions
        self._send(gateway, "beat", lambda: self.sides.beat(session, join=False, replaces=""), lose=lose)
        if not listed and gateway.cut is None:
            self._join(gateway)

    @rule(g=who)
    def reconnect(self, g: int) -> None:
        """The lost reply's call is sent again, before anything else of this gateway."""
        gateway = self.gateways[g]
        if gateway.cut is None:
            return
        verb, call, moves_before = gateway.cut
        at_once = self.moves == moves_before + 1 and verb not in TAKES_MORE
        before = self.sides.snapshot() if at_once else None
        gateway.cut = None
        self.moves += 1
        self._receive(gateway, call())
        assert before is None or self.sides.snapshot() == before, f"{verb} sent again changed the store"

    @rule(g=who, how=st.sampled_from(("crash", "crash of an exclusive one", "leave")))
    def end(self, g: int, how: str) -> None:
        """A kill -9 or an orderly end, and another process. An exclusive one knows its earlier sessions to be dead."""
        gateway = self.gateways[g]
        if how == "leave" and gateway.cut is None:
            self.moves += 1
            self.sides.leave(gateway.session)
        gateway.works, gateway.cut = [], None
        self._join(gateway, replaces=how == "crash of an exclusive one")

    @rule(g=who, lose=loss)
    def hand_back(self, g: int, lose: bool) -> None:
        """What the store says this gateway holds and it has never heard of."""
        gateway = self.gateways[g]
        session = gateway.session
        strangers = self.model.held(session) - {work[0] for work in gateway.works}
        self._send(gateway, "hand_back", lambda: self.sides.hand_back(session, strangers), lose=lose)

    # The world

    @rule(ms=st.sampled_from(STEPS_MS))
    def time_passes(self, ms: int) -> None:
        self.moves += 1
        self.sides.time_passes(ms)

    @rule(
        what=st.sampled_from(("put", "put", "pull", "pull", "pause", "resume", "delete")),
        limit=st.sampled_from(LIMITS),
        shares=st.sampled_from(SHARES),
    )
    def endpoint(self, what: str, limit: int, shares: dict[str, Share]) -> None:
        self.moves += 1
        if what in ("put", "pull"):
            self.sides.put_endpoint(limit, pulls=what == "pull", shares=shares)
        elif what == "delete":
            self.sides.delete_endpoint()
        else:
            self.sides.pause(paused=what == "pause")

    @invariant()
    def agree(self) -> None:
        self.sides.agree()

    def teardown(self) -> None:
        """Everything comes to rest: with gateways, agents and receivers that work, nothing is left (I1, I20)."""
        self.sides.put_endpoint(0, pulls=self.model.pulls)
        self.sides.pause(paused=False)
        for gateway in self.gateways:
            gateway.works, gateway.cut = [], None
            self._join(gateway, replaces=True)
        for _ in range(ROUNDS_MAX):
            if not self.model.ops:
                break
            self._round()
        snapshot = self.sides.agree()
        assert not self.model.ops, f"still not at rest: {self.model.ops}"
        assert (snapshot.timers, snapshot.idempotency, snapshot.index, snapshot.dead) == ({}, {}, {}, {})
        assert (snapshot.waiting, snapshot.waiting_endpoints, snapshot.line) == ({}, set(), {})
        assert (snapshot.journals, snapshot.children, snapshot.unfinished) == ({}, {}, {})

    def _round(self) -> None:
        for g, gateway in enumerate(self.gateways):
            self.beat(g, lose=False)
            self.hand_back(g, lose=False)
            self.unblock(g, 64, "", lose=False)
            self.pull(g, "a3", 64, 30_000, lose=False)
            self.claim(g, 64, lose=False)
            while gateway.works:
                self.book_outcome(g, 0, "succeed", answered=False, lose=False)
                self.book_delivery(g, 0, "delivered", lose=False)
        for op in [op for op in self.model.ops.values() if op.state is State.STARTED]:
            if not op.suspended:
                self.sides.complete(op.id, op.attempt, *OUTCOMES["succeed"], self.gateways[0].session)
            elif not op.cancel_asked:
                self.sides.cancel(op.id, self.gateways[0].session)  # it may wait for no time and no child
        busy = any(not op.state.terminal or op.owed for op in self.model.ops.values())
        dead = any(Delivery.DEAD in (op.cancel.is_, op.callback.is_) for op in self.model.ops.values())
        self.time_passes(1_000 if busy else DEAD_MS if dead else 61_000)
