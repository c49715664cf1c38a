"""Who waits for what: open first requests, and everybody else who waits for an operation to move.

A gateway hears of its own transitions directly and of other gateways' through the store's channel per operation.
Messages are hints (at most once): every wait also looks again by itself after LOOK_AGAIN_S.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mesh.machine import State
    from mesh.store.keys import Keys
    from mesh.store.layout import Outcome
    from mesh.store.subscriber import Subscriber

LOOK_AGAIN_S: Final = 2.0


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How an operation ended, as far as its first request must know; `seq` is the last event's number."""

    state: State
    outcome: Outcome
    attempt: int
    seq: int
    closed_at_ms: int
    journal: bool = False
    """There is more to its record than this and what is known from its start."""


class FirstRequest(msgspec.Struct, eq=False):
    """The request that started an operation, as long as it may still be answered with the outcome itself.

    Whoever records an outcome asks `claim` first: the request then waits for that outcome beyond its own time, and
    a Nexus callback is owed no more (P80). A closed one (201 sent, caller gone) is not claimed.
    """

    settled: bool = False
    """`ending` will not change any more."""
    ending: Ending | None = None
    """None while it is open, and when it was closed and nothing was on its way to it."""
    moved: asyncio.Event | None = None
    """Set with `settled`, for a wait on several things."""
    links: Sequence[str] = ()
    """What the agent's 201 linked to, when it came here."""
    brief: bool = False
    """The caller is told by callback and said nothing of waiting: once the agent gives a 201, so do we."""
    unsure: bool = False
    """The store did not say whether it recorded a claimed outcome, so the callback may have been spared already."""
    _waiter: Waiter | None = None
    _claims: int = 0
    _closed: bool = False

    @property
    def claimed(self) -> bool:
        """An outcome is on its way into the store and counts on this request."""
        return self._claims > 0

    def claim(self) -> bool:
        """Promise an outcome to this request; False when it no longer waits."""
        if self._closed:
            return False
        self._claims += 1
        return True

    def settle(self, ending: Ending) -> None:
        """The claimed outcome is durable."""
        self._settle(ending)

    def release(self, *, unsure: bool = False) -> None:
        """The claim came to nothing; `unsure`: the store did not answer."""
        self._claims -= 1
        self.unsure = self.unsure or unsure
        self._close_if_over()

    def close(self) -> None:
        """No further claims; `settled` follows when the last one ended."""
        self._closed = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._closed and not self._claims:
            self._settle(None)

    def _settle(self, ending: Ending | None) -> None:
        if not self.settled:
            self.settled = True
            self.ending = ending
            if self._waiter is not None:
                _wake(self._waiter)
            if self.moved is not None:
                self.moved.set()

    def wake(self, waiter: Waiter) -> None:
        """Wake it, as the only one, when this is settled, which it is not yet."""
        self._waiter = waiter

    async def wait(self, seconds: float) -> Ending | None:
        """Until it is settled or `seconds` are over."""
        if not self.settled:
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            self.wake(waiter)
            alarm = loop.call_later(seconds, _wake, waiter)
            try:
                await waiter
            finally:
                alarm.cancel()
                self._waiter = None
        return self.ending


class Waiter(Protocol):
    """Who is woken: a future, or what stands for one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...


def _wake(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Alarms:
    """One timer for many short waits: to set and cancel one for each costs 2 us. It rings in the order of setting."""

    def __init__(self) -> None:
        self._due: deque[tuple[float, Waiter]] = deque()

    def set(self, loop: asyncio.AbstractEventLoop, seconds: float, waiter: Waiter) -> asyncio.TimerHandle | None:
        """Wake `waiter` in `seconds`, if it is not woken before; by a timer of its own when another is due later."""
        due_s = loop.time() + seconds
        if not self._due:
            loop.call_at(due_s, self._ring, loop)
        elif due_s < self._due[-1][0]:
            return loop.call_later(seconds, _wake, waiter)
        self._due.append((due_s, waiter))
        return None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s, due = loop.time(), self._due
        while due:
            due_s, waiter = due[0]
            over = waiter.done()
            if not over and due_s > now_s:
                loop.call_at(due_s, self._ring, loop)
                return
            due.popleft()
            if not over:
                waiter.set_result(None)


class Waiters:
    """All waits of this gateway."""

    def __init__(self, keys: Keys, subscriber: Subscriber) -> None:
        """The subscriber's `on_gap` is to call `look_again`."""
        self._keys = keys
        self._subscriber = subscriber
        self.ended = False
        self.alarms = Alarms()
        """For waits that are hardly ever waited out."""
        self._firsts: dict[str, FirstRequest] = {}
        self._waits: dict[str, set[asyncio.Event]] = {}

    def open(self, operation_id: str) -> FirstRequest:
        """Register the first request of an operation that this gateway is about to accept."""
        first = self._firsts[operation_id] = FirstRequest()
        return first

    def first(self, operation_id: str) -> FirstRequest | None:
        """The open first request of the operation, if it is here."""
        return self._firsts.get(operation_id)

    def close(self, operation_id: str, first: FirstRequest) -> None:
        """The request is answered or withdrawn."""
        first.close()
        if self._firsts.get(operation_id) is first:
            del self._firsts[operation_id]

    def tell(self, operation_id: str) -> None:
        """The operation moved, and a first request that waits for the whole of it must look it up."""
        for event in self._waits.get(operation_id, ()):
            event.set()

    def look_again(self) -> None:
        """Messages may have been missed: everybody looks."""
        for events in self._waits.values():
            for event in events:
                event.set()

    @contextmanager
    def watching(self, *operation_ids: str) -> Generator[asyncio.Event]:
        """An event that is set whenever one of them may have moved. Enter, then read the store, then wait."""
        event = asyncio.Event()
        watched = set(operation_ids)
        for operation_id in watched:
            self._watch(operation_id, event)
        try:
            yield event
        finally:
            for operation_id in watched:
                events = self._waits[operation_id]
                events.discard(event)
                if not events:
                    del self._waits[operation_id]
                    self._subscriber.unsubscribe(self._keys.operation_channel(operation_id))

    def _watch(self, operation_id: str, event: asyncio.Event) -> None:
        events = self._waits.get(operation_id)
        if events is None:
            events = self._waits[operation_id] = set()
            self._subscriber.subscribe(
                self._keys.operation_channel(operation_id), lambda _message: self.tell(operation_id)
            )
        events.add(event)

    def end(self) -> None:
        """The gateway drains: nobody waits any longer than for what is on its way."""
        self.ended = True
        self.look_again()

    @property
    def count(self) -> int:
        """Open waits, for metrics."""
        return len(self._firsts) + sum(map(len, self._waits.values()))


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, `seconds` are over, or it is time to look again; clears the event."""
    try:
        async with asyncio.timeout(min(seconds, LOOK_AGAIN_S)):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
