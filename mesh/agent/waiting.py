"""Requests that hold their connection for a run: answered when it ends or is detached, or when their patience is over.

Owns the waiting and its timers. What the answer is, whoever lets them wait says. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from mesh.agent.inbound import StartHead
from mesh.agent.outcome import Outcome
from mesh.agent.runs import Run

Say = Callable[[Run, StartHead], Outcome]
Answer = Callable[[Outcome], None]


class Held(msgspec.Struct, eq=False):
    """One such request. `run` None: it is answered. `say` makes the answer, `answer` gives it to the caller."""

    run: Run | None
    head: StartHead
    say: Say
    answer: Answer
    timer: asyncio.TimerHandle | None = None
    until_s: float = 0.0

    def limit(self, seconds: float) -> None:
        """Answer after that time at the latest."""
        self.timer = asyncio.get_running_loop().call_later(seconds, self.expire)

    def expire(self) -> None:
        """The time is over."""
        if self.run is not None:
            self.run.waiting.remove(self)
            self.tell()

    def tell(self) -> None:
        """Answer now."""
        run, self.run = self.run, None
        if self.timer is not None:
            self.timer.cancel()
        if run is not None:
            self.answer(self.say(run, self.head))


class Patience:
    """A time that most requests wait at the longest: one timer for all of them, in the order in which they came."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._held: deque[Held] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, held: Held) -> None:
        """Answer `held` after that time at the latest."""
        queue, loop = self._held, asyncio.get_running_loop()
        while queue and queue[0].run is None:
            queue.popleft()
        held.until_s = loop.time() + self.seconds
        queue.append(held)
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        queue, now_s = self._held, loop.time()
        while queue and (queue[0].run is None or queue[0].until_s <= now_s):
            queue.popleft().expire()
        self._timer = loop.call_at(queue[0].until_s, self._look, loop) if queue else None
