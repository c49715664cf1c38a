"""What the store is to do, said as plainly as possible: the oracle for the model test.

Knows nothing of Lua, keys or packing; shares with the product only the words of its replies. Rates and byte limits are
left out.
"""

from __future__ import annotations

from math import inf
from typing import Final

from msgspec import UNSET

from mesh.machine import Delivery, Event, Kind, State
from mesh.store.verbs import Accepted, ChildStart, Completion, KeyReused, Replayed, Start, Task
from tests.model.durable import NOT_STARTED
from tests.model.fetching import Fetching
from tests.model.ground import OWED, Op, Owe, Sent

BEAT_MS: Final = 30_000


class Reference(Fetching):
    """The store as its callers may imagine it: the verbs."""

    # Callers

    def begin(self, order: Start, seat: tuple[str, int] | None = None) -> Accepted | Replayed | KeyReused | str:
        parent = self.parent_of(order) if isinstance(order, ChildStart) else None
        if isinstance(order, ChildStart) and parent is None:
            return "parent lost"
        known = self.ops.get(order.id)
        if known is None and order.key:
            known = next((op for op in self.ops.values() if op.order.key == order.key), None)
        if known is not None:
            return self._again(known, order, seat)
        if self.gone:
            return "no endpoint"
        if order.session not in self.sessions:
            return "no session"
        later = order.delay_ms if order.delay_ms is not UNSET else None
        begins = self.now + (later or 0)
        seat = seat if later is None else None
        reason = "" if later else self._why_not_now(order, seat)
        reason = reason or (self._counted_limit(order) if later == 0 else "")
        cap, depth = self.turns.share(order.ns).cap, len(self.turns.line.get(order.ns, ()))
        if cap and depth >= cap and (reason or later is not None):
            return "backlog"
        op = Op(order, self.now, start_at=begins, always=order.callback > 1)
        op.priority, op.turns = order.priority or 0, self.turns
        op.close_by = begins + order.close_ms if order.close_ms else 0
        if isinstance(order, ChildStart) and parent is not None:
            self.adopt(parent, op, order)
        op.start_by = begins + order.start_ms if order.start_ms else 0
        op.note("accepted")
        self.ops[op.id] = op
        if not later:
            self._send_off(op, seat, reason)
        room = cap - depth - bool(reason) if later is None and depth < cap else None
        return self._accepted(op, op.attempt, fetched=op.held, room=room)

    def _why_not_now(self, order: Start, seat: tuple[str, int] | None) -> str:
        return self.hindrance_outside(order.ns) or order.blocked or ("busy" if self.pulls and seat is None else "")

    def _counted_limit(self, order: Start) -> str:
        """What joins the line because nobody takes it at once."""
        own = self.turns.share(order.ns).max
        return "concurrency" if self.limit else "namespace_concurrency" if own else ""

    def _send_off(self, op: Op, seat: tuple[str, int] | None, reason: str) -> None:
        if reason:
            self.block(op, reason)
        elif self.pulls and seat is not None:
            self.hand_out(op, *seat)
        elif op.order.delay_ms is UNSET:
            self.dispatch(op, op.order.session)

    def _again(self, known: Op, order: Start, seat: tuple[str, int] | None) -> Accepted | Replayed | KeyReused | str:
        if known.id == order.id:
            if order.delay_ms is not UNSET:
                return self._accepted(known, 0, fetched=False)
            waited = known.history[1][0] == "blocked"
            fetched = seat is not None and known.held and known.instance == seat[0] and not waited
            mine = fetched or (known.start is Delivery.LEASED and known.owner == order.session)
            return self._accepted(known, int(mine and known.attempt == 1), fetched=fetched)
        if known.order.digest != order.digest:
            return KeyReused(known.id)
        if isinstance(order, ChildStart) and (known.parent, known.order_key) != (order.parent, order.parent_key):
            return "other parent"
        # A repeat may be answered 201 while the first request still waits for the outcome itself.
        known.always = known.always or (known.order.callback > 0 and not known.state.terminal)
        return Replayed(known.id, known.state)

    def _accepted(self, op: Op, attempt: int, *, fetched: bool, room: int | None = None) -> Accepted:
        close_by_ms = op.close_by if op.parent or fetched or room is not None else 0
        return Accepted(op.created, attempt, op.blocked, fetched=fetched, close_by_ms=close_by_ms, room=room)

    def cancel(self, one: str, session: str) -> tuple[str, Sent | None]:
        op = self.ops.get(one)
        if op is None:
            return "unknown", None
        if op.state.terminal or op.cancel_asked:
            return "same", None
        if self.ask_to_end(op):
            sent = op.order.callback and self.lease(op, op.callback, session)
            return "canceled", (one, Kind.CALLBACK, op.callback.tries) if sent else None
        out = op.state is State.STARTED and not op.suspended and not op.held
        return "requested", self.owe_cancel(op, session) if out else None

    # Agents

    def started(self, one: str, attempt: int, session: str, token: str, beat_ms: int) -> tuple[str, Sent | None]:
        op = self.ops.get(one)
        if op is None:
            return "unknown", None
        current = attempt == op.attempt
        if current and op.state is State.SCHEDULED and not op.suspended:
            if op.start is Delivery.DUE:
                op.slot = self.turns.slot(op, self.limit)
            op.state, op.start, op.start_at, op.start_by, op.blocked = State.STARTED, Delivery.DELIVERED, 0, 0, ""
            op.finish_by = self.now + op.order.run_ms if op.order.run_ms else 0
            if beat_ms:
                op.beat_ms, op.leased = beat_ms, True
            op.beat_by = self.now + op.beat_ms if op.leased else 0
            op.token = token
            op.note("started")
            work = self.owe_cancel(op, session) if op.cancel_asked else None
            op.let_go()
            return "started", work
        unaware = op.state is State.TIMED_OUT or (op.state is State.CANCELED and op.cancel_asked)
        if current and unaware and op.cancel.is_ is Delivery.NONE:
            op.token = token
            return "same", self.owe_cancel(op, session)
        return "same", None

    def complete(  # noqa: C901, PLR0911 - one per answer
        self, one: str, attempt: int, event: Event, outcome: bytes, session: str, *, answered: bool
    ) -> tuple[Completion, Sent | None]:
        op = self.ops.get(one)
        if op is None:
            return Completion.UNKNOWN, None
        state = {Event.SUCCEED: State.SUCCEEDED, Event.FAIL: State.FAILED, Event.CANCEL: State.CANCELED}[event]
        if op.state.terminal:
            if (op.state, op.outcome) == (state, outcome):
                return Completion.SAME, None
            if attempt < op.attempt and (op.beat_ms or op.durable):
                op.note_refused(attempt)
            return Completion.OTHER, None
        if op.suspended and attempt == op.attempt:
            return Completion.LEASE_LOST, None
        if attempt != op.attempt:
            if op.beat_ms or op.durable:
                op.note_refused(attempt)
                return Completion.LEASE_LOST, None
            if state is State.FAILED or (state is State.CANCELED and not op.cancel_asked):
                return Completion.DROPPED, None
        if op.start in OWED:
            op.start = Delivery.DELIVERED
        self.settle(op, state, outcome)
        sent = False
        if op.order.callback:
            if answered and not op.always:
                op.callback.is_ = Delivery.DROPPED
            else:
                sent = self.lease(op, op.callback, session)
        return Completion.DONE, (one, Kind.CALLBACK, op.callback.tries) if sent else None

    def retry(self, one: str, attempt: int, delay_ms: int, outcome: bytes) -> str:
        op = self.ops.get(one)
        if op is None:
            return "unknown"
        if attempt != op.attempt or op.state is not State.SCHEDULED or op.start is not Delivery.LEASED or op.kept:
            return "same"
        op.note("attempt_failed")
        if op.cancel_asked and not op.durable:
            self.settle(op, State.CANCELED, NOT_STARTED)
            return "canceled"
        if op.order.attempts_max and op.spent >= op.order.attempts_max:
            self.settle(op, State.FAILED, outcome)
            return "exhausted"
        op.state, op.start, op.start_at, op.slot = State.BACKING_OFF, Delivery.DUE, self.now + delay_ms, 0
        op.let_go()
        return "backing_off"

    def release(self, one: str, attempt: int, reason: str, session: str) -> str:
        op = self.ops.get(one)
        if op is None:
            return "unknown"
        holds = op.state is State.SCHEDULED and op.start is Delivery.LEASED and op.owner == session
        if attempt != op.attempt or not holds:
            return "same"
        if op.cancel_asked and not op.durable:
            self.settle(op, State.CANCELED, NOT_STARTED)
            return "canceled"
        op.start, op.start_at, op.slot = Delivery.DUE, self.now, 0
        if op.durable:
            op.resumes += 1
        else:
            op.attempt -= 1
        self.block(op, reason)
        op.let_go()
        return "waiting"

    def heartbeat(self, task: Task) -> str:
        op = self.ops.get(task.id)
        if op is None:
            return "unknown"
        if fate := self.fenced(op, task.attempt):
            return fate
        op.beat_ms = task.lease_ms or op.beat_ms or BEAT_MS
        op.beaten(self.now)
        return "cancel" if op.cancel_asked else "ok"

    # Couriers

    def claim(self, session: str, count: int) -> tuple[list[Sent], list[str], float] | str:
        """Works, ended operations and the next time to look."""
        if session not in self.sessions:
            return "no session"
        works: list[Sent] = []
        ended: list[str] = []
        for owner in (session, ""):
            mine = [op for op in self.ops.values() if op.owner == owner and op.look_at <= self.now]
            for op in sorted(mine, key=lambda op: (op.look_at, op.id))[: max(count, 0)]:
                count -= 1
                if op.children == 2:
                    self.close_children(op)
                    continue
                if op.state.terminal and not op.owed:
                    del self.ops[op.id]
                    continue
                if self._fire(op, session, works):
                    ended.append(op.id)
        left = [op.look_at for op in self.ops.values() if op.owner in (session, "")]
        return works, ended, min(left, default=inf)

    def _fire(self, op: Op, session: str, works: list[Sent]) -> bool:
        """Everything of `op` that is due. Returns whether it ended."""
        was_over = op.state.terminal
        if not was_over:
            self._fire_deadlines(op)
        if not op.state.terminal:
            self._fire_start(op, session, works)
        for kind, owe in ((Kind.CANCEL, op.cancel), (Kind.CALLBACK, op.callback)):
            if owe.is_ in OWED and owe.at <= self.now:
                self.lease(op, owe, session)
                works.append((op.id, kind, owe.tries))
        op.let_go()
        return op.state.terminal and not was_over

    def _fire_deadlines(self, op: Op) -> None:
        begun = op.state is State.STARTED
        known = begun and not op.suspended and not op.held
        for at, reason in (
            (op.close_by, "schedule_to_close"),
            (0 if begun else op.start_by, "schedule_to_start"),
            (op.finish_by, "start_to_close"),
        ):
            if at and at <= self.now:
                self.settle(op, State.TIMED_OUT, ("mesh", reason))
                if known and op.cancel.is_ is Delivery.NONE:
                    op.cancel.is_, op.cancel.at = Delivery.DUE, self.now
                return

    def _fire_start(self, op: Op, session: str, works: list[Sent]) -> None:
        silent = op.state is State.STARTED and op.beat_by and op.beat_by <= self.now
        if silent or (op.start is Delivery.LEASED and op.start_at <= self.now):
            self.lose(op)
        if op.start is not Delivery.DUE or op.blocked or not 0 < op.start_at <= self.now:
            return
        if op.cancel_asked and not op.durable:
            self.settle(op, State.CANCELED, NOT_STARTED)
        elif op.order.attempts_max and op.spent >= op.order.attempts_max:
            self.settle(op, State.FAILED, ("mesh", "attempts_exhausted"))
        elif reason := self.hindrance_outside(op.order.ns) or ("busy" if self.pulls else ""):
            self.block(op, reason)
        else:
            self.dispatch(op, session)
            works.append((op.id, Kind.START, op.attempt))

    def unblock(self, session: str, count: int, reason: str, *, probe: bool) -> tuple[list[Sent], str] | str:
        if session not in self.sessions:
            return "no session"
        works: list[Sent] = []
        if reason:
            for op in self.line[:count]:
                self.show(op, self.hindrance() or self.turns.own_limit(op.order.ns) or reason)
            return works, ""
        self.turns.unpark(self.now)
        for _ in range(1 if probe else count):
            op = self._least_tried() if probe else self.next_in_turn()
            if op is None:
                break
            if why := self.hindrance() or ("busy" if self.pulls else ""):
                self.show(op, why)
                return works, why
            if op.order.attempts_max and op.spent >= op.order.attempts_max:
                op.blocked, op.start_at = "", self.now
            else:
                self.dispatch(op, session)
                works.append((op.id, Kind.START, op.attempt))
        return works, ""

    def _least_tried(self) -> Op | None:
        """`reversed` and `min`: the newest of those that failed least."""
        free = [op for op in reversed(self.line) if not self.turns.own_limit(op.order.ns)]
        return min(free, key=lambda op: op.attempt, default=None)

    # Deliveries

    def delivered(self, one: str, kind: Kind) -> None:
        op = self.ops.get(one)
        owe = self._owe(op, kind)
        if op is not None and owe is not None and owe.is_ in (*OWED, Delivery.DEAD):
            owe.is_ = Delivery.DELIVERED
            op.note(f"{kind}_delivered")
            op.let_go()

    def defer(self, one: str, kind: Kind, tries: int, delay_ms: int, *, dead: bool) -> str:
        op = self.ops.get(one)
        owe = self._owe(op, kind)
        if op is None or owe is None:
            return "unknown"
        if tries != owe.tries or owe.is_ is not Delivery.LEASED:
            return "same"
        owe.is_ = Delivery.DEAD if dead else Delivery.DUE
        if dead:
            owe.at = self.now
            op.note("callback_dead" if kind is Kind.CALLBACK else "cancel_failed")
        else:
            owe.at = self.now + delay_ms
            if kind is Kind.CALLBACK:
                op.note("callback_failed")
        op.let_go()
        return "dead" if dead else "deferred"

    def redeliver(self, one: str, kind: Kind) -> str:
        op = self.ops.get(one)
        owe = self._owe(op, kind)
        if op is None or owe is None:
            return "unknown"
        if owe.is_ in (Delivery.NONE, Delivery.DROPPED):
            return "not_owed"
        if owe.is_ is Delivery.LEASED:
            return "same"
        if owe.is_ is Delivery.DUE:
            owe.at = min(owe.at, self.now)
            return "due"
        owe.is_, owe.at = Delivery.DUE, self.now
        op.note("redelivered")
        return "due"

    def _owe(self, op: Op | None, kind: Kind) -> Owe | None:
        return None if op is None else op.cancel if kind is Kind.CANCEL else op.callback
