"""What a request brings about, its own task sends: the first attempt of a start, the callback of a completion.

A task beside the request's costs more than much of what it does. Of a start that waits for its outcome most attempts
come back at once; one that takes longer goes on where it is, and the request is answered by another task. Who waits for
nothing more is answered before. Where somebody else makes the attempt the request has no task at all, and is answered
by whoever records the outcome. Knows no route and no wire.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.courier import Courier
    from gateway.orders import Attempt
    from gateway.waiters import Alarms, FirstRequest, Waiters
    from mesh.edge import Answer, Request
    from mesh.store.verbs import Work

AtOnce: TypeAlias = "Callable[[], Answer | None]"
"""The answer, where it is here."""
Conclude: TypeAlias = "Callable[[], Coroutine[Any, Any, Answer]]"
"""Waits as long as is left, and answers."""

QUICK_S: Final = 0.1
"""Most answers come within this; a longer wait is worth a task, a subscription, an eye on the caller's connection."""


class Carried(msgspec.Struct, eq=False):
    """A request whose task makes an attempt, and what is done when that takes longer.

    For its alarm it is what a future would be: `done` when it is over, and woken by `set_result`.
    """

    _request: Request
    _conclude: Conclude | None
    _alarm: asyncio.TimerHandle | None = None
    late: bool = False
    """Another task answers the request."""

    def begin(self, alarms: Alarms, seconds: float) -> None:
        """It is late after so long."""
        self._alarm = alarms.set(asyncio.get_running_loop(), seconds, self)

    def end(self) -> None:
        """The attempt is over."""
        self._conclude = None
        if self._alarm is not None:
            self._alarm.cancel()

    def done(self) -> bool:
        """Whether the alarm has nothing to do."""
        return self._conclude is None

    def set_result(self, _: None) -> None:
        """The alarm: the attempt is still out."""
        conclude, self._conclude = self._conclude, None
        if conclude is not None:
            self.late = True
            self._request.later(conclude(), apart=True)


class Parked(msgspec.Struct, eq=False):
    """A request that waits without a task, for its outcome or for an alarm, whichever wakes it first.

    `_waits` None: it was woken. The alarm refers to it for a while yet, and need not keep a request with its body.
    """

    _waits: tuple[Request, AtOnce, Conclude] | None

    def done(self) -> bool:
        """Whether it was woken."""
        return self._waits is None

    def set_result(self, _: None) -> None:
        """Answer with what is here, else leave it to a task. Who calls has more to do, and is told of no trouble."""
        if self._waits is None:
            return
        (request, at_once, conclude), self._waits = self._waits, None
        try:
            answer = at_once()
        except Exception:  # noqa: BLE001 - the task comes to the same, and answers it
            answer = None
        if answer is None:
            request.later(conclude())
        else:
            request.sink.answer(answer)


class Carrying:
    """Requests that carry their attempts."""

    _courier: Courier
    _waiters: Waiters

    def carry(
        self, attempt: Attempt, wait_s: float, request: Request, conclude: Conclude
    ) -> Coroutine[Any, Any, bool]:
        """Make the `attempt` in the present task, which is that of `request`.

        False: it took longer than the request was to wait, or than is worth it; then `conclude` answers the request, in
        another task, and this one has nothing left to do.
        """
        carried = Carried(request, conclude)
        carried.begin(self._waiters.alarms, min(wait_s, QUICK_S))
        return self._courier.carry(attempt, carried, request.sink.task)

    def park(
        self, first: FirstRequest | None, wait_s: float, request: Request, at_once: AtOnce, conclude: Conclude
    ) -> bool:
        """Answer `request` as soon as its outcome is recorded here, by `conclude` where that takes longer than most.

        Whether it has still to be answered, for there is nothing to wait for.
        """
        if first is None or first.settled or wait_s <= 0:
            return True
        parked = Parked((request, at_once, conclude))
        first.wake(parked)
        self._waiters.alarms.set(asyncio.get_running_loop(), min(wait_s, QUICK_S), parked)
        return False

    def send(self, attempt: Attempt, request: Request) -> Coroutine[Any, Any, None]:
        """Make the `attempt` in the task of `request`, which is answered."""
        return self._courier.send(attempt, request.sink.task)

    def call_back(self, work: Work, request: Request) -> Coroutine[Any, Any, None]:
        """Make the callback of a completion in the task of `request`, which is answered."""
        return self._courier.call_back(work, request.sink.task)
