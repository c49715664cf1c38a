"""One attempt of a durable operation: the code, its journal, and what becomes of both.

The operations of the context (steps.py, calls.py, waits.py, gather.py) are written in terms of `find`, `ready`,
`record`, `wait` and `park`. An attempt ends with the code's result or error, with Suspended (nothing is left here, the
mesh wakes the operation), or with LeaseLost (it is somebody else's). Must not know HTTP, nor how the task arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from mesh.agent.durable.entries import MESSAGE_CHARS_MAX, Entry, read
from mesh.agent.durable.errors import CancelRequested, Suspended
from mesh.agent.durable.exchange import Exchange
from mesh.agent.durable.link import Link, Task, Tools
from mesh.agent.durable.resting import Resting
from mesh.clock import sleep

T = TypeVar("T")

UNWIND_S: Final = 5.0
"""What code gets to unwind when its attempt is over; then it is cancelled, then left behind."""
FINDS_PER_TURN: Final = 200
"""A long replay lets others have their turn so often."""
HELD_MS: Final = 1 << 52

logger: Final = logging.getLogger("mesh.agent")


class Attempt:
    """`run` it once. `cancel`, `leave` and `told` may be called while it runs."""

    __slots__ = (
        "_cancel_told", "_cancel_wanted", "_detached", "_errands", "_finds", "_interruptible", "_over", "_stopped",
        "_waiting", "background", "exchange", "fetching", "link", "live_children", "loop", "resting", "task", "tools",
    )  # fmt: skip

    def __init__(self, task: Task, link: Link, tools: Tools) -> None:
        self.task = task
        self.link = link
        self.tools = tools
        self.loop = asyncio.get_running_loop()
        self.exchange = Exchange(link, task.journal, self)
        self.resting = Resting(link, self.exchange, tools, self)
        self.live_children: dict[str, str] = {}
        """Operation ids of children that are canceled with this operation, by key."""
        self.fetching = 0
        """Results on their way here that are recorded and stand outside the journal."""
        self.background: set[asyncio.Task[Any]] = set()
        """Sources of gathers that came late and were kept: they end with the code, if not before."""
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._stopped: BaseException | None = None
        self._detached = False
        self._cancel_wanted = task.cancel_requested
        self._cancel_told = False
        self._waiting: set[asyncio.Future[Any]] = set()
        self._interruptible: set[asyncio.Future[Any]] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._finds = 0

    # -- life

    async def run(self, code: Callable[[], Awaitable[T]]) -> T:
        """The result of `code`. Raises what it raises; Suspended or LeaseLost when the attempt ends without answer."""
        main = self.loop.create_task(self._main(code))
        main.add_done_callback(self._ended)
        try:
            await self._over
            self._close()
            if self._stopped is None:
                return main.result()
            await self._unwind(main)
            raise _fresh(self._stopped)
        except asyncio.CancelledError:
            self.stop(Suspended("interrupted"))
            main.cancel()
            raise
        finally:
            # What knows each other is let go, so that an attempt that is over leaves at once.
            self.exchange.forget()
            self.resting.forget()
            self._waiting.clear()
            del main

    async def _main(self, code: Callable[[], Awaitable[T]]) -> T:
        result = await code()
        await self._flushed()
        left = self.exchange.replay.left()
        if left:
            told = f"recorded, but the code no longer asks for it (renamed or removed since): {', '.join(left)}"
            logger.warning("%s: %s", self.task.operation_id, told)
            self.exchange.put(Entry("progress", "", message=told[:MESSAGE_CHARS_MAX]))
            await self._flushed()
        return result

    async def _flushed(self) -> None:
        while not self.exchange.idle:
            await self.wait(self.exchange.flush())

    def stop(self, why: BaseException) -> None:
        """The attempt is over: all that waits here is woken with `why`, nothing is sent any more."""
        if self._stopped is None and not self._over.done():
            self._stopped = why
            self._close()
            for future in tuple(self._waiting):
                if not future.done():
                    future.set_exception(_fresh(why))
            self._over.set_result(None)

    def cancel(self) -> None:
        """The caller wants the operation to end: code that waits, or runs a step, is told now, else when it asks."""
        if self._cancel_wanted:
            return
        self._cancel_wanted = True
        targets = [future for future in self._interruptible if not future.done()]
        if targets:
            self._tell_cancel()
            for future in targets:
                future.set_exception(CancelRequested())

    @property
    def cancel_known(self) -> bool:
        """Whether the code was told, or will be when it asks, that the caller wants the operation to end."""
        return self._cancel_wanted

    def leave(self) -> None:
        """The process is about to end: begin nothing new, hand the operation back when what runs has ended."""
        self.resting.leave()

    def told(self, length: int) -> None:
        """A later attempt of this run came here while it goes on, and said how long the journal is."""
        self.exchange.told(length)

    def _ended(self, main: asyncio.Task[Any]) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _close(self) -> None:
        self.exchange.close()
        self.resting.close()
        for task in self.background:
            task.cancel()

    async def _unwind(self, main: asyncio.Task[Any]) -> None:
        await asyncio.wait({main}, timeout=UNWIND_S)
        if not main.done():
            main.cancel()
            await asyncio.wait({main}, timeout=UNWIND_S)
        if not main.done():
            logger.error("%s: its code does not end; it is left behind", self.task.operation_id)
        elif not main.cancelled():
            main.exception()  # looked at, whatever it is: the attempt is over for another reason

    # -- what the operations of the context are made of

    async def find(
        self, key: str, family: str, asked: str, args: str | None = None, *, strict: bool = True
    ) -> list[Entry]:
        """What is recorded under `key`; empty when nothing is. Raises JournalMismatch."""
        exchange = self.exchange
        self._finds += 1
        if self._finds % FINDS_PER_TURN == 0:
            await sleep(0)
        while not exchange.ledger.complete and not exchange.replay.settled(key):
            await self.wait(exchange.page())
        self.check()
        places = exchange.replay.take(key, family, asked, args, strict=strict)
        entries: list[Entry] = []
        for place in places:
            raw = place.raw
            if raw is None:
                raw = (await self.wait(self.link.read(place.at, 1))).entries[0]
            entries.append(read(raw))
        return entries

    async def ready(self) -> None:
        """Before anything new begins: wait out a suspension, hand over, or raise what ends this code."""
        while True:
            self.check()
            self.check_cancel()
            if self.resting.suspending is not None:
                await asyncio.wait({self.resting.suspending})
                await sleep(0)  # what its answer means is worked out in its callbacks
            elif self.resting.leaving:
                await self.park(self.loop.create_future(), HELD_MS)
            else:
                break
        self.detach()

    async def sure(self) -> None:
        """Before a step's function: the lease is known to hold, or the mesh is asked. Raises what ends this code.

        Else a process that stood still for longer than its lease would do again what somebody else has recorded since.
        """
        while not self.link.sure():
            await self.wait(self.exchange.renewed())
            await self.ready()

    def check(self) -> None:
        """Raises what ended this attempt."""
        if self._stopped is not None:
            raise _fresh(self._stopped)

    def check_cancel(self) -> None:
        """Raises CancelRequested, once."""
        if self._cancel_wanted and not self._cancel_told:
            self._tell_cancel()
            raise CancelRequested

    def detach(self) -> None:
        """Something of this attempt is about to be recorded: it goes on by itself from here."""
        if not self._detached:
            self._detached = True
            self.task.detach()

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What the Link gives, unless the attempt ends first. Raises what it raises."""
        task = self.loop.create_task(work)
        over: asyncio.Future[None] = self.loop.create_future()
        task.add_done_callback(partial(settle_by, over))
        try:
            await self.wait(over)
        except BaseException:
            task.cancel()
            raise
        finally:
            del over  # as in wait
        return task.result()

    async def record(self, entry: Entry) -> Entry:
        """Append an entry and wait until it is stored; gives the one that counts. Raises TooLarge."""
        recorded = await self.wait(self.exchange.put(entry))
        return entry if recorded is None else read(recorded)

    async def wait(self, future: asyncio.Future[T], *, interruptible: bool = False) -> T:
        """Await something, unless the attempt ends first; or, if `interruptible`, the caller asks for its end."""
        self.check()
        self._waiting.add(future)
        if interruptible:
            self._interruptible.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            self._interruptible.discard(future)
            del future  # it may hold an exception that holds this frame, for the garbage collector to find

    async def park(self, future: asyncio.Future[T], until_ms: int | None, value: T | None = None) -> T:
        """Await a time (`future` gets `value` then, if the attempt is still here) or, for None, the end of a child."""
        timer: asyncio.TimerHandle | None = None
        if until_ms is not None and until_ms < HELD_MS:
            timer = self.loop.call_later(max(0.0, (until_ms - self.link.now_ms()) / 1000), settle, future, value)
        place = self.resting.parked(until_ms)
        try:
            return await self.wait(future, interruptible=True)
        finally:
            self.resting.left(place)
            if timer is not None:
                timer.cancel()
            del future, timer  # as in wait

    def adopt(self, key: str, operation_id: str, *, fresh: bool) -> None:
        """A child that ends with this operation. One that was started after the cancel was told cleans up: it stays."""
        self.live_children[key] = operation_id
        if self._cancel_told and not fresh:
            self.cancel_child(operation_id)

    def _tell_cancel(self) -> None:
        """The code is told once; what it does about it may take further steps."""
        self._cancel_told = True
        for operation_id in self.live_children.values():
            self.cancel_child(operation_id)

    def cancel_child(self, operation_id: str) -> None:
        """Ask for a child's end; nobody waits for the answer."""
        task = self.loop.create_task(self.link.cancel_child(operation_id))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def settle(future: asyncio.Future[Any], value: Any = None) -> None:
    """Set a result, unless somebody was quicker."""
    if not future.done():
        future.set_result(value)


def settle_by(future: asyncio.Future[None], _: object) -> None:
    """`settle` as a callback of something else that is done."""
    settle(future)


def _fresh(why: BaseException) -> BaseException:
    """Another one of the same: a shared exception would grow its traceback with everybody who raises it."""
    return type(why)(*why.args)
