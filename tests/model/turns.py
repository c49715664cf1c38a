"""The part of the oracle that is about whose turn it is: namespaces in an endpoint's line, their limits and weights.

Told of every operation that comes into the line or leaves it, and of every slot that is given back. Rates are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.model.ground import Op

LEVEL_MS: Final = 10_000
"""How much waiting a level of priority is worth."""
PARKED_MS: Final = 1_000
LIMITED: Final = ("concurrency", "rate", "namespace_concurrency", "namespace_rate")


class Share(NamedTuple):
    """What an endpoint grants a namespace; 0 is no limit."""

    max: int = 0
    weight: int = 1
    cap: int = 0


class Turns:
    """Namespaces with somebody in line: virtual times, and who waits at a limit of its own alone."""

    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}
        """By namespace or `*`."""
        self.line: dict[str, list[Op]] = {}
        self.running: dict[str, int] = {}
        self.at: dict[str, float] = {}
        self.debts: dict[str, float] = {}
        self.parked: dict[str, int] = {}
        self.cost = 0.0
        """Of what leaves the line next: it was its namespace's turn."""

    def share(self, namespace: str) -> Share:
        return self.shares.get(namespace) or self.shares.get("*") or Share()

    def own_limit(self, namespace: str) -> str:
        most = self.share(namespace).max
        return "namespace_concurrency" if most and self.running.get(namespace, 0) >= most else ""

    def slot(self, op: Op, limit: int) -> int:
        """0 not counted, 1 counted, 2: counted, and its namespace has a limit."""
        return op.slot or (2 if self.share(op.order.ns).max else 1 if limit or self.shares else 0)

    # What happens to operations

    def enter(self, op: Op) -> None:
        line = self.line.setdefault(op.order.ns, [])
        line.append(op)
        line.sort(key=lambda op: (op.could_begin - op.priority * LEVEL_MS, op.id))
        if len(line) == 1:
            self._enter_turns(op.order.ns)

    def leave(self, op: Op) -> None:
        namespace, cost, self.cost = op.order.ns, self.cost, 0.0
        self.line[namespace].remove(op)
        if self.line[namespace]:
            if cost:
                self.at[namespace] += cost
            return
        del self.line[namespace]
        self.parked.pop(namespace, None)
        if namespace in self.at:
            self._leave_turns(namespace, cost)

    def took(self, op: Op) -> None:
        self.running[op.order.ns] = self.running.get(op.order.ns, 0) + 1

    def freed(self, op: Op, *, own: bool) -> None:
        self.running[op.order.ns] -= 1
        if own and self.parked.pop(op.order.ns, None) is not None:
            self._enter_turns(op.order.ns)

    def _enter_turns(self, namespace: str) -> None:
        debt = self.debts.pop(namespace, 0) if self.at else 0
        self.at[namespace] = max(min(self.at.values(), default=0), debt)

    def _leave_turns(self, namespace: str, cost: float) -> None:
        left = self.at.pop(namespace) + cost
        if not self.at:
            self.debts.clear()
            return
        present = min(self.at.values())
        self.debts = {one: at for one, at in self.debts.items() if at > present}
        if left > present:
            self.debts[namespace] = left

    # Who goes

    def charge(self, op: Op) -> None:
        """It is about to leave the line because it was its turn."""
        self.cost = 1 / self.share(op.order.ns).weight if op.blocked else 0.0

    def unpark(self, now: int) -> None:
        for namespace in sorted(self.parked, key=lambda one: (self.parked[one], one)):
            if self.parked[namespace] <= now:
                del self.parked[namespace]
                self._enter_turns(namespace)

    def limits_changed(self) -> None:
        self.parked = dict.fromkeys(self.parked, 0)

    def next(self, now: int) -> tuple[Op | None, Iterable[Op]]:
        """Whose turn it is, and the first of each namespace that turned out to be at its own limit."""
        parked: list[Op] = []
        while self.at:
            namespace = min(self.at, key=lambda one: (self.at[one], one))
            if not self.own_limit(namespace):
                return self.line[namespace][0], parked
            self._leave_turns(namespace, 0)
            self.parked[namespace] = now + PARKED_MS
            parked.append(self.line[namespace][0])
        return None, parked
