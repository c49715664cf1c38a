"""How long an agent knows that an attempt's lease holds, without asking: by its own clock, counted from what it sent.

Work may lie in this process's socket buffers while it stands still (SIGSTOP, a laptop asleep, a loop that is blocked),
and the mesh may give it to somebody else meanwhile. `Pulse` finds out that the process stood still; `Hold` is what is
known of one attempt. Both are written on the loop and read from threads too. Knows no mesh and no code.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.clock import boot_s

TICK_S: Final = 0.25
STILL_S: Final = 0.5
"""Two looks further apart: the process, or its loop, stood still in between."""
DOUBT_S: Final = 5.0
"""After that, how long what is read may have lain in a buffer since before."""
RENEWED: Final = 2 / 3
"""Of its lease, what an attempt counts on after its mesh confirmed it; a heartbeat comes every third."""
ARRIVED: Final = 1 / 2
"""What it counts on when it has just been read: less by what its way, and standing still unnoticed, may have taken."""
ARRIVED_S_MAX: Final = 2.0
"""A start that was pushed ends, until its 201 is noted, with its gateway: 3 s after that one's last sign of life."""


class Pulse:
    """Whether this process has run without a pause. `begin` it on a loop, `end` it. `lease_ms`: of its attempts."""

    __slots__ = ("_arrived_s", "_calm_s", "_last_s", "_loop", "_timer", "renewed_s")

    def __init__(self, lease_ms: int) -> None:
        lease_s = lease_ms / 1000
        self._arrived_s = min(lease_s * ARRIVED, ARRIVED_S_MAX)
        self.renewed_s = lease_s * RENEWED
        self._last_s = boot_s()
        self._calm_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look from time to time from now on. Again: nothing."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._last_s = boot_s()
            self._timer = self._loop.call_later(TICK_S, self._tick, self._loop)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def known_until(self, now_s: float) -> float:
        """How long the lease of what is read now, which is `now_s`, holds as far as one can know; 0: one cannot."""
        # The tick that is to notice may itself be late: after a standstill, sockets are read before timers fire.
        if now_s - self._last_s > STILL_S:
            self._calm_s = now_s + DOUBT_S
        self._last_s = now_s
        return now_s + self._arrived_s if now_s >= self._calm_s else 0.0

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.known_until(boot_s())
        self._timer = loop.call_later(TICK_S, self._tick, loop)


class Hold:
    """What is known of the lease of one attempt, which was read just now."""

    __slots__ = ("_pulse", "_until_s")

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._until_s = pulse.known_until(boot_s())

    def arrived(self) -> None:
        """A later attempt was read just now, and takes the place of this one."""
        self._until_s = self._pulse.known_until(boot_s())

    def renewed(self, asked_s: float) -> None:
        """The mesh renewed the lease; `asked_s`: boot_s() when it was asked, so that a late answer says no more."""
        self._until_s = max(self._until_s, asked_s + self._pulse.renewed_s)

    def lost(self) -> None:
        self._until_s = 0.0

    def sure(self) -> bool:
        """Whether the lease is known to hold now."""
        return boot_s() < self._until_s
