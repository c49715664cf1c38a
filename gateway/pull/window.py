"""The polls of one endpoint that wait here, and which of them gets the next task. No I/O.

A poll takes reservations while it is open. With its first task it closes, and it is answered once every start that it
was reserved for is in the store: what comes back together leaves together, in one frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from gateway.pull.frames import FRAME_BYTES_MAX, CancelBody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WISHES_MAX: Final = 256
"""Different lists of services that are told apart."""
SPREAD: Final = 32
"""Starts in a row for one of an instance's polls, before the next one of them gets some: several frames on their way
keep gateway, store and agent busy at once, where one large one would have each wait for the others."""
LATE_S: Final = 0.25
"""How long a frame with tasks waits for the other starts it was promised; what comes later is given back."""


class Poll:
    """One poll that waits. `free` seats are left, `held` are promised to starts on their way into the store."""

    __slots__ = (
        "_alarm", "_answered", "_over", "booked", "bytes", "cancels", "free", "held", "instance", "lease_ms", "open",
        "services", "tasks", "window",
    )  # fmt: skip

    def __init__(
        self, window: Window, instance: str, free: int, lease_ms: int, services: frozenset[str], *, booked: bool
    ) -> None:
        self.window = window
        self.instance = instance
        self.free = free
        self.lease_ms = lease_ms
        self.services = services
        self.booked = booked
        """Its own answers are in the store."""
        self.held = 0
        self.bytes = 0
        self.tasks: list[tuple[str, int, int, bytes]] = []
        """(operation, run, attempt, JSON)."""
        self.cancels: list[CancelBody] = []
        self.open = True
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        """It is being answered: nothing more can be added."""
        return self._answered.done()

    def takes(self, service: str, size: int) -> bool:
        """Whether one more of `service` with `size` bytes of input may be promised to it."""
        return (
            self.open
            and self.free > 0
            and (not self.bytes or self.bytes + size <= FRAME_BYTES_MAX)
            and (not self.services or service in self.services)
        )

    def promise(self, count: int = 1, size: int = 0) -> None:
        """Seats for starts on their way."""
        self.free -= count
        self.held += count
        self.bytes += size
        if not self.free:
            self.window.full(self)

    def let_go(self, count: int = 1, size: int = 0) -> None:
        """Promised seats that are not needed after all."""
        self.held -= count
        self.free += count
        self.bytes -= size
        if self.open and not self.done:
            self.window.offers(self)
        self.consider()

    def hand(self, operation: str, run: int, attempt: int, task: bytes) -> bool:
        """A task for a promised seat; False: too late, it is somebody else's to give back."""
        self.held -= 1
        if self.done:
            return False
        self.tasks.append((operation, run, attempt, task))
        self.consider()
        return True

    def tell(self, cancel: CancelBody) -> None:
        """An attempt that this instance has is no longer wanted."""
        self.cancels.append(cancel)
        self.consider()

    def consider(self) -> None:
        """Close it when there is something to say, answer it when nothing is on its way any more."""
        if self._answered.done() or not self.booked:
            return
        if self.tasks or self.cancels or self._over:
            if not self.held:
                self.finish()
            elif self.open:
                self.close()
                self._ring(LATE_S, self.finish)

    def close(self) -> None:
        """No further promises."""
        if self.open:
            self.open = False
            self.window.full(self)

    def over(self) -> None:
        """Its time is over, or the gateway drains."""
        self._over = True
        self.consider()

    def finish(self) -> None:
        """Answer it with what it has."""
        self.close()
        if not self._answered.done():
            self._answered.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Until it is to be answered; after `seconds` as soon as nothing is on its way."""
        if seconds <= 0:
            self.over()
        elif self.open:
            self._ring(seconds, self.over)
        try:
            await self._answered
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    def _ring(self, seconds: float, then: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(seconds, then)


class Window:
    """The waiting polls of one endpoint. Instances take turns; of one, the poll that waits longest goes first."""

    def __init__(self, endpoint_id: str) -> None:
        self.endpoint_id = endpoint_id
        self.all: set[Poll] = set()
        self._open: dict[str, deque[Poll]] = {}
        """Instances in the order of their turns, each with its polls that have a free seat."""
        self._seen: set[frozenset[str]] = set()
        """For these wishes the endpoint's line in the store had nothing more when it was looked at last."""
        self.looking = False
        self.backlog = False
        """The last look left something in the line."""
        self.idle_since_s = 0.0

    def news(self) -> None:
        """The endpoint's line in the store may have work, for anybody."""
        self._seen.clear()

    def may_have(self, services: frozenset[str]) -> bool:
        """Whether the line may have work for a poll with these wishes."""
        return services not in self._seen

    def looking_for(self, services: frozenset[str]) -> None:
        """It is being looked at for them; news from now on count."""
        if len(self._seen) >= WISHES_MAX:
            self._seen.clear()
        self._seen.add(services)

    def left(self, services: frozenset[str]) -> None:
        """The look did not come to the end of the line."""
        self._seen.discard(services)

    def add(self, poll: Poll) -> None:
        self.all.add(poll)
        if poll.free:
            self.offers(poll)

    def remove(self, poll: Poll) -> None:
        self.all.discard(poll)
        self.full(poll)

    def offers(self, poll: Poll) -> None:
        """It has a free seat."""
        polls = self._open.get(poll.instance)
        if polls is None:
            self._open[poll.instance] = deque((poll,))
        elif poll not in polls:
            polls.append(poll)

    def full(self, poll: Poll) -> None:
        """It has none, or is closed."""
        polls = self._open.get(poll.instance)
        if polls is not None and poll in polls:
            polls.remove(poll)
            if not polls:
                del self._open[poll.instance]

    def reserve(self, service: str, size: int) -> Poll | None:
        """A seat for a start that goes into the store now, of the instance whose turn it is."""
        for instance, polls in self._open.items():
            for poll in polls:
                if poll.takes(service, size):
                    if len(self._open) > 1:
                        del self._open[instance]
                        self._open[instance] = polls
                    poll.promise(size=size)
                    if len(polls) > 1 and poll.held % SPREAD == 0:
                        polls.rotate(-1)
                    return poll
        return None

    def offered(self) -> Iterator[Poll]:
        """Polls with a free seat."""
        for polls in list(self._open.values()):
            yield from list(polls)

    def of(self, instance: str) -> Poll | None:
        """A poll of `instance` that can still be told something."""
        return next((poll for poll in self.all if poll.instance == instance and not poll.done), None)
