"""One origin's connections: which are idle, who waits, how many there may be.

A *slot* is the right to have one connection. It belongs to an open connection, or to the request that is
connecting; it passes to the next waiter directly, so nobody who comes later can overtake. A lane must not
know how to connect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from mesh.errors import NotSent
from mesh.pool.heads import Heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.pool.connection import Connection
    from mesh.pool.target import Target

Ticket = asyncio.Future["Connection | None"]
"""What a waiter gets: a free connection, or None for a slot to connect in."""


class Lane:
    """`slot_gone` is called when a slot is given back to nobody."""

    __slots__ = (
        "connections", "empty_before", "heads", "idle", "idle_s", "loop", "origin", "slot_gone", "slots", "waiting"
    )  # fmt: skip

    def __init__(
        self, origin: str, loop: asyncio.AbstractEventLoop, idle_s: float, slot_gone: Callable[[], None]
    ) -> None:
        self.origin = origin
        self.loop = loop
        self.idle_s = idle_s
        self.slot_gone = slot_gone
        self.slots = 0
        self.empty_before = False
        self.connections: set[Connection] = set()
        self.heads = Heads()
        self.idle: list[Connection] = []
        self.waiting: deque[tuple[Ticket, float]] = deque()

    def take_idle(self, target: Target, now_s: float) -> Connection | None:
        """The most recently used idle connection that fits `target`; others are closed on the way."""
        while self.idle:
            connection = self.idle.pop()
            fresh = not connection.closed and now_s - connection.idle_at_s < self.idle_s
            if fresh and connection.leads_to(target.addresses):
                return connection
            connection.drop()
        return None

    async def wait(self, deadline_s: float, *, first: bool) -> Connection | None:
        """Queue for a connection or a slot, in order of arrival; `first` for one who was served in vain."""
        ticket: Ticket = self.loop.create_future()
        entry = (ticket, deadline_s)
        if first:
            self.waiting.appendleft(entry)
        else:
            self.waiting.append(entry)
        try:
            return await ticket
        except asyncio.CancelledError:
            if ticket.cancelled():
                with contextlib.suppress(ValueError):  # skipped and removed by `_serve` before this ran
                    self.waiting.remove(entry)
            elif ticket.exception() is None:  # served and cancelled in the same turn: pass it on
                self._give_back(ticket.result())
            raise

    def is_over(self) -> bool:
        """Whether nothing used it, this time and the last time this was asked.

        Twice, because a waiter that was served a connection and lost it in the same turn holds neither slot
        nor ticket until it runs again.
        """
        empty = not self.slots and not self.waiting
        over, self.empty_before = empty and self.empty_before, empty
        return over

    def give_up_slot(self) -> None:
        """Hand a slot that carries no connection to the next waiter, else give it back."""
        if not self._serve(None):
            self.slots -= 1
            self.slot_gone()

    def refuse_waiters(self, why: str, until_s: float = float("inf")) -> None:
        """Fail the waiters whose deadline is at or before `until_s`."""
        for entry in [entry for entry in self.waiting if entry[1] <= until_s]:
            self.waiting.remove(entry)
            if not entry[0].done():
                entry[0].set_exception(NotSent(why))

    def freed(self, connection: Connection) -> None:
        connection.idle_at_s = self.loop.time()
        if not self.waiting or not self._serve(connection):
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection not in self.connections:
            return  # lost while connecting: whoever connects still owns the slot
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if not connection.stale:  # a stale one's slot stays with its request, which connects again in it
            self.give_up_slot()

    def _give_back(self, served: Connection | None) -> None:
        if served is None:
            self.give_up_slot()
        elif not served.closed:
            self.freed(served)

    def _serve(self, what: Connection | None) -> bool:
        while self.waiting:
            ticket, _ = self.waiting.popleft()
            if not ticket.done():
                ticket.set_result(what)
                return True
        return False
