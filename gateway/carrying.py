"""What a request brings about, its own task sends: the first attempt of a start, the callback of a completion.

A task beside the request's costs more than much of what it does. Of a start that waits for its outcome most attempts
come back at once; one that takes longer goes on where it is, and the request is answered by another task. Who waits for
nothing more is answered before. Knows no route and no wire.
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

Conclude: TypeAlias = "Callable[[], Coroutine[Any, Any, Answer]]"
"""Waits as long as is left, and answers."""

QUICK_S: Final = 0.1
"""Most answers come within this; a longer wait is worth a task, a subscription, an eye on the caller's connection."""


class Carried(msgspec.Struct, eq=False):
    """A request whose task makes an attempt, and what is done when that takes longer.

    For its alarm it is what a future would be: `done` when it is over, and woken by `set_result`.
    """

    _first: FirstRequest | None
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
            if self._first is not None:
                self._first.waited = True
            self._request.later(conclude(), apart=True)


class Carrying:
    """Requests that carry their attempts."""

    _courier: Courier
    _waiters: Waiters

    def carry(
        self, attempt: Attempt, first: FirstRequest | None, wait_s: float, request: Request, conclude: Conclude
    ) -> Coroutine[Any, Any, bool]:
        """Make the `attempt` in the present task, which is that of `request`.

        False: it took longer than the request was to wait, or than is worth it; then `conclude` answers the request, in
        another task, and this one has nothing left to do.
        """
        carried = Carried(first, request, conclude)
        carried.begin(self._waiters.alarms, min(wait_s, QUICK_S))
        return self._courier.carry(attempt, carried, request.sink.task)

    def send(self, attempt: Attempt, request: Request) -> Coroutine[Any, Any, None]:
        """Make the `attempt` in the task of `request`, which is answered."""
        return self._courier.send(attempt, request.sink.task)

    def call_back(self, work: Work, request: Request) -> Coroutine[Any, Any, None]:
        """Make the callback of a completion in the task of `request`, which is answered."""
        return self._courier.call_back(work, request.sink.task)
