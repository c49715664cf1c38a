"""Who waits for what, and whether the attempt still has something to do. Pure: the time is an argument.

Work is `busy` while it needs this process: a step that runs, a request that is out. What only waits for time or for a
child is parked. When everything is parked the attempt may rest a little (a child that answers quickly spares a replay)
and then suspends, to be woken by the store.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

LINGER_MS: Final = 500


class Busy(NamedTuple):
    """Something runs here."""


class Rest(NamedTuple):
    """Stay until then, milliseconds since the epoch, or until something happens."""

    until_ms: int


class Suspend(NamedTuple):
    """Nothing to do before `wake_at_ms`; None: before a child ends."""

    wake_at_ms: int | None


Verdict: TypeAlias = Busy | Rest | Suspend
BUSY: Final = Busy()


class Parking:
    """`linger_ms`: how long an attempt that only waits stays in memory."""

    __slots__ = ("_children", "_last", "_linger_ms", "_since_ms", "_until", "busy", "generation")

    def __init__(self, linger_ms: int) -> None:
        self._linger_ms = linger_ms
        self.busy = 0
        self.generation = 0
        """Moves whenever anything begins, ends, parks or leaves."""
        self._until: dict[int, int] = {}
        self._children: set[int] = set()
        self._since_ms: int | None = None
        self._last = 0

    @property
    def parked(self) -> int:
        return len(self._until) + len(self._children)

    @property
    def waits_for_children(self) -> bool:
        return bool(self._children)

    def begin(self) -> None:
        self.busy += 1
        self._moved()

    def end(self) -> None:
        self.busy -= 1
        self._moved()

    def park(self, until_ms: int | None) -> int:
        """Busy work begins to wait: for a time, or for a child. Gives what `leave` takes."""
        self.end()
        self._last += 1
        if until_ms is None:
            self._children.add(self._last)
        else:
            self._until[self._last] = until_ms
        return self._last

    def leave(self, place: int) -> None:
        """The wait is over; the work is busy again."""
        self._until.pop(place, None)
        self._children.discard(place)
        self.begin()

    def decide(self, now_ms: int) -> Verdict:
        """What the attempt should do, given that all code had its turn."""
        if self.busy or not self.parked:
            self._since_ms = None
            return BUSY
        wake_at_ms = min(self._until.values(), default=None)
        if self._since_ms is None:
            self._since_ms = now_ms
        rest_until_ms = self._since_ms + self._linger_ms
        if wake_at_ms is not None and wake_at_ms <= now_ms + self._linger_ms:
            return Rest(wake_at_ms)
        if self._children and now_ms < rest_until_ms:
            return Rest(rest_until_ms)
        return Suspend(wake_at_ms)

    def _moved(self) -> None:
        self.generation += 1
        self._since_ms = None
