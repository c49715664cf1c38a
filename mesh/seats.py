"""How many may do a costly thing at once, and how many of them one party. Knows neither the thing nor the parties."""

from __future__ import annotations

from collections import Counter


class Seats:
    """`total_max` seats, `each_max` of them for one party, so that no party takes those of all others.

    `part`: nor a few parties together. A second seat, and any after it, is for who holds fewer than that part of those
    that are free: `part` 4, a fourth.
    """

    __slots__ = ("_each_max", "_part", "_taken", "_total", "_total_max")

    def __init__(self, total_max: int, each_max: int, *, part: int = 0) -> None:
        self._total_max = total_max
        self._each_max = each_max
        self._part = part
        self._total = 0
        self._taken: Counter[str] = Counter()

    def free(self, whose: str) -> bool:
        """Whether `whose` would get one now."""
        held, free = self._taken[whose], self._total_max - self._total
        return free > 0 and held < self._each_max and (held == 0 or held * self._part < free)

    def take(self, whose: str) -> bool:
        """Take one. False: there is none."""
        if not self.free(whose):
            return False
        self._total += 1
        self._taken[whose] += 1
        return True

    def leave(self, whose: str) -> None:
        """Give one back, once for each that was taken."""
        self._total -= 1
        self._taken[whose] -= 1
        if not self._taken[whose]:
            del self._taken[whose]
