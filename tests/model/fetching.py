"""The part of the oracle that is about attempts which agents fetch: seats, the line, and what is said by task token."""

from __future__ import annotations

from typing import Final

from mesh.machine import Delivery, State
from tests.model.durable import NOT_STARTED, Durable
from tests.model.ground import Op

BACK_OFF_MS: Final = 1_000
BACK_OFF_MS_MAX: Final = 60_000
"""The retry policy of the endpoint: doubled each time, without jitter."""

Fetched = tuple[str, int]
"""Operation and attempt that an agent was given."""


class Fetching(Durable):
    """What pollers get, and give back."""

    def hand_out(self, op: Op, instance: str, lease_ms: int) -> None:
        """The next attempt: nobody's to send, for it is there."""
        op.slot = self.turns.slot(op, self.limit)
        self.turns.charge(op)
        op.attempt += 1
        op.resumes += bool(op.suspended)
        op.suspended = 0
        if op.cancel_asked:
            self.drop_cancel(op)
        op.state, op.start, op.start_at, op.start_by, op.blocked = State.STARTED, Delivery.DELIVERED, 0, 0, ""
        op.finish_by = self.now + op.order.run_ms if op.order.run_ms else 0
        op.instance, op.beat_ms, op.leased, op.beat_by = instance, lease_ms, True, self.now + lease_ms
        op.note("started")
        op.let_go()

    def pull(self, instance: str, count: int, lease_ms: int) -> tuple[list[Fetched], str]:
        """The first of the line, and why it stopped."""
        if not self.pulls:
            return [], "not_pull"
        works: list[Fetched] = []
        if count:
            self.turns.unpark(self.now)
        for _ in range(count):
            op = self.next_in_turn()
            if op is None:
                break
            if reason := self.hindrance():
                self.show(op, reason)
                return works, reason
            if op.order.attempts_max and op.spent >= op.order.attempts_max:
                op.blocked, op.start_at = "", self.now
            else:
                self.hand_out(op, instance, lease_ms)
                works.append((op.id, op.attempt))
        return works, ""

    @staticmethod
    def standing(op: Op, attempt: int) -> str:
        """`ok` while the attempt runs."""
        if attempt != op.attempt:
            return "lost"
        if op.state.terminal:
            return "ended"
        return "ok" if op.state is State.STARTED and op.start is Delivery.DELIVERED else "same"

    def retried(self, one: str, attempt: int, least_ms: int, outcome: bytes) -> str:
        op = self.ops.get(one)
        if op is None:
            return "unknown"
        word = self.standing(op, attempt)
        pushed = op.state is State.SCHEDULED and op.start is Delivery.LEASED
        if word != "ok" and not (word == "same" and pushed):
            return word
        op.note("attempt_failed")
        if op.cancel_asked and not op.durable:
            self.settle(op, State.CANCELED, NOT_STARTED)
            return "canceled"
        if op.order.attempts_max and op.spent >= op.order.attempts_max:
            self.settle(op, State.FAILED, outcome)
            return "exhausted"
        delay_ms = min(BACK_OFF_MS * 2 ** max(op.spent - 1, 0), BACK_OFF_MS_MAX)
        self._take_back(op, State.BACKING_OFF, self.now + max(delay_ms, least_ms))
        return "backing_off"

    def released(self, one: str, attempt: int) -> str:
        op = self.ops.get(one)
        if op is None:
            return "unknown"
        word = self.standing(op, attempt)
        if word != "ok":
            return word
        if op.cancel_asked and not op.durable:
            self.settle(op, State.CANCELED, NOT_STARTED)
            return "canceled"
        self._take_back(op, State.SCHEDULED, self.now)
        op.resumes += 1
        op.note("released")
        op.blocked = "busy" if self.pulls else ""
        return "waiting"

    @staticmethod
    def _take_back(op: Op, state: State, at: int) -> None:
        op.state, op.start, op.start_at, op.slot = state, Delivery.DUE, at, 0
        op.beat_by = op.finish_by = 0
        op.let_go()
