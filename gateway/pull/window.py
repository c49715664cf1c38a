"""The polls of one endpoint that wait here, and which of them gets the next task. No I/O.

A poll takes reservations while it is open. With its first task it closes, and it is answered once every start that it
was reserved for is in the store: what comes back together leaves together, in one frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.pull.frames import FRAME_BYTES_MAX, CancelBody
from registry.choice import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mesh.tokens import Claim
    from registry.instances import Roster

WISHES_MAX: Final = 256
"""Different wishes that are told apart."""
SPREAD: Final = 32
"""Starts in a row for one of an instance's polls, before the next one of them gets some: several frames on their way
keep gateway, store and agent busy at once, where one large one would have each wait for the others."""
LATE_S: Final = 0.25
"""How long a frame with tasks waits for the other starts it was promised; what comes later is given back."""


class Wish(NamedTuple):
    """A line that a poll takes from, "" the endpoint's, else that of a pin; and what it takes there, empty for all."""

    pin: str
    services: frozenset[str]


class Poll:
    """One poll that waits. `free` seats are left, `held` are promised to starts on their way into the store."""

    __slots__ = (
        "_alarm", "_answered", "_over", "booked", "bytes", "cancels", "claims", "drains", "free", "held", "instance",
        "lease_ms", "open", "pin", "services", "tasks", "window", "wishes",
    )  # fmt: skip

    def __init__(
        self, window: Window, instance: str, free: int, lease_ms: int, services: frozenset[str], version: str,
        *, booked: bool,
    ) -> None:  # fmt: skip
        self.window = window
        self.instance = instance
        self.free = free
        self.lease_ms = lease_ms
        self.services = services
        self.pin = VERSION + version if version else ""
        """Of the pinned work that it takes."""
        own = (Wish(self.pin, services),) if version else ()
        self.wishes = (*own, Wish("", services))
        """What waits for its version goes first."""
        self.booked = booked
        """Its own answers are in the store."""
        self.held = 0
        self.bytes = 0
        self.claims: list[Claim] = []
        self.tasks: list[bytes] = []
        """Attempts, and the JSON of each."""
        self.cancels: list[CancelBody] = []
        self.open = True
        self.drains = False
        """Its instance was told to while it waited."""
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        """It is being answered: nothing more can be added."""
        return self._answered.done()

    def take(self, service: str, size: int) -> bool:
        """A seat for a start of `service` with `size` bytes of input on its way, if it has one."""
        free, total = self.free, self.bytes + size
        if not self.open or free <= 0 or (total > FRAME_BYTES_MAX and self.bytes):
            return False
        if self.services and service not in self.services:
            return False
        self.free = free - 1
        self.held += 1
        self.bytes = total
        if free == 1:
            self.window.full(self)
        return True

    def promise(self, count: int) -> None:
        """Seats for what a look at the line brings."""
        self.free -= count
        self.held += count
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

    def hand(self, claim: Claim, task: bytes) -> bool:
        """A task for a promised seat; False: too late, it is somebody else's to give back."""
        self.held -= 1
        if self.done:
            return False
        self.claims.append(claim)
        self.tasks.append(task)
        if not self.held or self.open:
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
        self._seen: set[Wish] = set()
        """For these wishes the line in the store had nothing more when it was looked at last."""
        self._hindered: set[Wish] = set()
        """Of these, those that the endpoint itself kept from moving."""
        self.roster: Roster | None = None
        """When it was last seen who drains."""
        self.looking = False
        self.backlog = False
        """The last look left something in the line."""
        self.idle_since_s = 0.0

    def news(self, pin: str | None = None) -> None:
        """The line of `pin` ("" the endpoint's) in the store may have work, for anybody; None: any line may."""
        if pin is None:
            self._seen.clear()
        else:
            self._seen = {wish for wish in self._seen if wish.pin != pin}
            if not pin:
                self._seen -= self._hindered
        self._hindered &= self._seen

    def may_have(self, poll: Poll) -> bool:
        """Whether a line may have work for it."""
        return any(wish not in self._seen for wish in poll.wishes)

    def wanted(self) -> dict[Wish, list[Poll]]:
        """Polls with a free seat, by what they want that a line may have; what waits for a version first."""
        wanted: dict[Wish, list[Poll]] = {}
        for poll in self.offered():
            for wish in poll.wishes:
                if wish not in self._seen:
                    wanted.setdefault(wish, []).append(poll)
        return dict(sorted(wanted.items(), key=lambda one: not one[0].pin)) if len(wanted) > 1 else wanted

    def looking_for(self, wish: Wish) -> None:
        """The line is being looked at for it; news from now on count."""
        if len(self._seen) >= WISHES_MAX:
            self._seen.clear()
            self._hindered.clear()
        self._seen.add(wish)

    def left(self, wish: Wish) -> None:
        """The look did not come to the end of the line."""
        self._seen.discard(wish)

    def stopped(self, wish: Wish) -> None:
        """The endpoint's state kept what waits for a version from moving: what is news of that is news of this."""
        if wish in self._seen:
            self._hindered.add(wish)

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

    def reserve(self, service: str, size: int, pin: str) -> Poll | None:
        """A seat for a start that goes into the store now, of the instance whose turn it is."""
        for instance, polls in self._open.items():
            for poll in polls:
                if (pin and poll.pin != pin) or not poll.take(service, size):
                    continue
                if len(polls) > 1 and poll.held % SPREAD == 0:
                    polls.rotate(-1)
                if len(self._open) > 1 and polls:
                    del self._open[instance]
                    self._open[instance] = polls
                return poll
        return None

    def offered(self) -> Iterator[Poll]:
        """Polls with a free seat."""
        for polls in list(self._open.values()):
            yield from list(polls)

    def of(self, instance: str) -> Poll | None:
        """A poll of `instance` that can still be told something."""
        return next((poll for poll in self.all if poll.instance == instance and not poll.done), None)
