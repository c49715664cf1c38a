"""The part of the oracle that is about durable work: journals, suspension, children."""

from __future__ import annotations

from typing import Final

from mesh.machine import Delivery, State
from mesh.store.verbs import Append, ChildStart, Suspend
from tests.model.ground import Ground, Op

NOT_STARTED: Final = ("mesh", "canceled_before_start")
WAITED: Final = ("mesh", "canceled_waiting")


class Durable(Ground):
    """What running attempts say, and what becomes of children."""

    @staticmethod
    def fenced(op: Op, attempt: int) -> str:
        """Why the token of `attempt` may say nothing, or ''."""
        if attempt != op.attempt:
            return "lost"
        if op.state.terminal:
            return "ended"
        return "" if op.is_out else "lost"

    def append(self, task: Append) -> tuple[str, int]:
        """Status and length."""
        op = self.ops.get(task.id)
        if op is None:
            return "unknown", 0
        if fate := self.fenced(op, task.attempt):
            if fate == "lost" and not op.suspended:
                op.note_refused(task.attempt)
            return fate, 0
        mine = [("step", task.attempt, body) for body in task.bodies]
        end = task.at + len(mine)
        if task.at != len(op.journal):
            if not mine or op.journal[task.at : end] != mine:
                return "grown", len(op.journal)
        else:
            op.journal += mine
        op.durable = True
        if op.leased and op.beat_by - self.now < op.beat_ms * 2 / 3:
            op.beaten(self.now)
        return "ok", end

    def suspend(self, task: Suspend) -> tuple[str, int]:
        """Status and length."""
        op = self.ops.get(task.id)
        if op is None:
            return "unknown", 0
        if op.suspended and op.attempt == task.attempt:
            return "ok", len(op.journal)
        if fate := self.fenced(op, task.attempt):
            if fate == "lost" and not op.suspended:
                op.note_refused(task.attempt)
            return fate, len(op.journal)
        if task.at != len(op.journal) or (op.cancel_asked and not task.cancel):
            return "grown", len(op.journal)
        if op.state is State.SCHEDULED:
            op.state = State.STARTED
            op.note("started")
        wakes = task.wake_at_ms or task.wake_in_ms
        if op.cancel_asked and not wakes and not any(self._lives(one, op.id) for one in self.ops.values()):
            self.settle(op, State.CANCELED, WAITED)
            return "ended", len(op.journal)
        op.durable, op.suspended, op.slot = True, self.now, 0
        op.start, op.start_by, op.finish_by, op.beat_by = Delivery.DUE, 0, 0, 0
        op.start_at = task.wake_at_ms or (self.now + task.wake_in_ms if task.wake_in_ms else 0)
        op.note("suspended")
        op.let_go()
        return "ok", len(op.journal)

    @staticmethod
    def _lives(one: Op, parent: str) -> bool:
        return one.parent == parent and not one.state.terminal

    def ask_to_end(self, op: Op) -> bool:
        """Whether it ended at once; what keeps a journal is left to its handler, as long as there can be one."""
        op.cancel_asked = True
        op.note("cancel_requested")
        lost = op.state is not State.STARTED and op.blocked == "endpoint_deleted"
        if op.start is Delivery.DUE and (lost or not op.durable):
            self.settle(op, State.CANCELED, NOT_STARTED)
            return True
        if op.start is Delivery.DUE:
            op.start_at = self.now
        return False

    def parent_of(self, order: ChildStart) -> Op | None:
        """Who starts the child; None when its attempt may start nothing."""
        parent = self.ops.get(order.parent)
        fate = self.fenced(parent, order.parent_attempt) if parent is not None else "unknown"
        if parent is not None and fate == "lost" and not parent.suspended:
            parent.note_refused(order.parent_attempt)
        return None if fate else parent

    def adopt(self, parent: Op, op: Op, order: ChildStart) -> None:
        """`op` is a child of `parent`, and has no more time than that."""
        op.parent, parent.children = parent.id, 1
        op.priority = max(op.priority, parent.priority)
        if order.parent_close:
            parent.unfinished.add(op.id)
        if parent.close_by:
            op.close_by = min(op.close_by or parent.close_by, parent.close_by)

    def close_children(self, op: Op) -> None:
        """The parent ended: what it left is not wanted."""
        for child in [self.ops[one] for one in op.unfinished if one in self.ops]:
            over = child.state.terminal or child.cancel_asked or self.ask_to_end(child)
            if not over and child.state is State.STARTED and not (child.suspended or child.held):
                child.cancel.is_, child.cancel.at = Delivery.DUE, self.now
        op.unfinished.clear()
        op.children = 3
