"""An event loop whose time jumps: while nothing but timers is left to wait for, the next timer is now.

Real work is waited for in real time: sockets, subprocesses, threads started through the loop. So a handler that sleeps
three days is tested at once, and a step that runs pytest takes as long as it takes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Final

from mesh.clock import monotonic_s

BEGIN_S: Final = 1.0
SLICE_S: Final = 0.02
"""Real waits are cut so that a thread's end is seen soon."""
SETTLED_S: Final = 10.0
STUCK_S: Final = 30.0
"""A loop that has neither timers nor work for so long waits for something that cannot come."""


class Stuck(RuntimeError):
    """Nothing can happen any more: the code waits for something that nobody will do."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at BEGIN_S and jumps."""

    def __init__(self) -> None:
        self._now_s = BEGIN_S
        self._threads = 0
        self._running: set[concurrent.futures.Future[Any]] = set()
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if executor is None:
            future = super().run_in_executor(executor, func, *args)
        else:
            run = executor.submit(func, *args)
            self._running.add(run)
            run.add_done_callback(self._running.discard)
            future = asyncio.wrap_future(run, loop=self)
        self._threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    async def settled(self) -> None:
        """Until what was given up in threads has ended there too: a process that is lost has none that go on."""
        self._threads += 1
        try:
            left = [asyncio.wrap_future(run, loop=self) for run in tuple(self._running)]
            if left:
                await asyncio.wait(left, timeout=SETTLED_S)
        finally:
            self._threads -= 1

    def working(self) -> bool:
        """Whether threads or subprocesses of the loop are at work."""
        return self._threads > 0 or any(each.name.startswith("waitpid-") for each in threading.enumerate())

    def blocked(self, more: int) -> None:
        """So many more of the loop's threads wait for the loop itself."""
        self._threads -= more

    def _thread_ended(self, _: asyncio.Future[Any]) -> None:
        self._threads -= 1


class _Selector(selectors.BaseSelector):
    """The system's selector, asked without waiting unless somebody real is waited for."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._inner = selectors.DefaultSelector()
        self._idle_since_s: float | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = self._inner.select(0)
        if found or timeout == 0:
            self._idle_since_s = None
            return found
        own = len(self.get_map()) > 1 or self._loop.working()  # one is the loop's own wake-up pipe
        if timeout is not None and not own:
            self._loop.advance(timeout)
            return []
        began_s = monotonic_s()
        if not own:
            self._idle_since_s = self._idle_since_s or began_s
            if began_s - self._idle_since_s > STUCK_S:
                message = "nothing can happen any more: the handler waits for something that nobody will do"
                raise Stuck(message)
        found = self._inner.select(SLICE_S if timeout is None else min(timeout, SLICE_S))
        self._loop.advance(monotonic_s() - began_s)
        return found
