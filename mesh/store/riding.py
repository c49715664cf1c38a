"""When calls that nobody waits for leave at the latest, if no other call takes them along before.

Owns their one timer. Knows neither the calls nor the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

RIDE_S: Final = 0.005
"""The longest that such a call is kept back: far below every lease and deadline."""
_EARLY_S: Final = RIDE_S / 10
"""A loop's clock may count in ms: no second timer for so little."""


class Riding:
    """`begin` with the first of them, `end` when they left; `depart` is called when nobody took them along."""

    __slots__ = ("_alarm", "_by_s", "_depart", "waiting")

    def __init__(self, depart: Callable[[], None]) -> None:
        self._depart = depart
        self._alarm: asyncio.TimerHandle | None = None
        self._by_s = 0.0
        self.waiting = False
        """Something rides and has not left."""

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = True
        self._by_s = loop.time() + RIDE_S
        if self._alarm is None:
            self._alarm = loop.call_at(self._by_s, self._ring, loop)

    def close(self) -> None:
        """No call leaves any more."""
        self.waiting = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        # It is not canceled when what it was set for leaves: that would cost more than all the rest of riding.
        self._alarm = None
        if not self.waiting:
            return
        if self._by_s - loop.time() > _EARLY_S:
            self._alarm = loop.call_at(self._by_s, self._ring, loop)
        else:
            self._depart()
