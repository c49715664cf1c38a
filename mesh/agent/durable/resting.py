"""When an attempt rests and when it goes: watches until all code is quiet, lingers, then hands the operation back.

Owns the parking and the timers around it. Knows no user code and no entries.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.agent.durable.errors import LeaseLost, Suspended
from mesh.agent.durable.exchange import NOBODY, Exchange, Listener
from mesh.agent.durable.link import Ack, Link, Tools
from mesh.agent.durable.parking import Busy, Parking, Rest

HOPS: Final = 8
"""Turns of the loop that a wake-up may need from a settled future to the code that waits behind gathers and groups."""
IDLE_S: Final = 0.25
"""Between two questions for news when the first had none."""


class Resting:
    """`parked`, `left`, `begin`, `end` tell what the code does; the listener is stopped with Suspended in the end."""

    __slots__ = (
        "_closed", "_exchange", "_link", "_listener", "_look", "_loop", "_parking", "_settle_s", "_watching",
        "leaving", "missed", "suspending",
    )  # fmt: skip

    def __init__(self, link: Link, exchange: Exchange, tools: Tools, listener: Listener) -> None:
        self.leaving = False
        self.suspending: asyncio.Future[Ack] | None = None
        self.missed: dict[str, tuple[str, str]] = {}
        """What code waits for that is recorded and cannot be had, by step: kind and text of the trouble."""
        self._link = link
        self._exchange = exchange
        self._settle_s = tools.settle_s
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._parking = Parking(tools.linger_ms)
        self._look: asyncio.Handle | None = None
        self._watching: asyncio.Handle | asyncio.Future[Ack] | None = None
        self._closed = False

    def begin(self) -> None:
        """Something runs here from now on."""
        self._parking.begin()

    def end(self) -> None:
        """It is over."""
        self._parking.end()
        self.quiet()

    def parked(self, until_ms: int | None) -> int:
        """What ran waits for a time, or for a child's end."""
        place = self._parking.park(until_ms)
        if until_ms is None and self._watching is None:
            self._watching = self._loop.call_later(self._settle_s, self._watch)
        self.quiet()
        return place

    def left(self, place: int) -> None:
        """It runs again."""
        self._parking.leave(place)

    def leave(self) -> None:
        """Go as soon as nothing runs."""
        self.leaving = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self.quiet()

    def close(self) -> None:
        self._closed = True
        for each in (self._look, self._watching, self.suspending):
            if each is not None:
                each.cancel()

    def forget(self) -> None:
        """The attempt is over and was told: let go of it."""
        self._listener = NOBODY
        self._look = self._watching = self.suspending = None

    def quiet(self) -> None:
        """If nothing runs, look soon whether it stays so."""
        if self._look is None and not (self._parking.busy or self._closed) and self._parking.parked:
            self._look = self._loop.call_later(self._settle_s, self._settled, self._parking.generation, 0)

    def _settled(self, generation: int, hops: int) -> None:
        self._look = None
        if generation != self._parking.generation:
            self.quiet()
        elif hops < HOPS:
            # A loop that is behind runs late timers before the code that was woken meanwhile.
            self._look = self._loop.call_soon(self._settled, generation, hops + 1)
        else:
            self._decide(generation)

    def _decide(self, generation: int) -> None:
        now_ms = self._link.now_ms()
        verdict = self._parking.decide(now_ms)
        if isinstance(verdict, Busy) or self.suspending is not None:
            return
        if self.leaving:
            self._suspend(now_ms)
        elif isinstance(verdict, Rest):
            delay_s = max(self._settle_s, (verdict.until_ms - now_ms) / 1000)
            self._look = self._loop.call_later(delay_s, self._settled, generation, HOPS)
        else:
            self._suspend(verdict.wake_at_ms)

    def _suspend(self, wake_at_ms: int | None) -> None:
        if not self._exchange.idle:
            self._exchange.flush().add_done_callback(lambda _: self.quiet())
            return
        if self.missed and not self.leaving:
            self.suspending = self._link.put_off(*next(iter(self.missed.values())))
        else:
            self.suspending = self._link.suspend(
                self._exchange.ledger.length, wake_at_ms, cancel=self._listener.cancel_known
            )
        self.suspending.add_done_callback(self._suspended)

    def _suspended(self, out: asyncio.Future[Ack]) -> None:
        self.suspending = None
        if self._closed or out.cancelled():
            return
        ack = out.result()
        if ack.status == "ok":
            self._listener.stop(Suspended())
        elif ack.status == "grown":
            self._exchange.told(ack.length)
            if ack.cancel:
                self._listener.cancel()
            self.quiet()
        else:
            self._listener.stop(LeaseLost(ack.detail or f"the mesh answered {ack.status!r}"))

    def _watch(self) -> None:
        """While a child is waited for, hear of its end from the mesh."""
        self._watching = None
        if self._closed or not self._parking.waits_for_children:
            return
        self._watching = self._link.watch(self._exchange.ledger.length, cancel=self._listener.cancel_known)
        self._watching.add_done_callback(self._watched)

    def _watched(self, out: asyncio.Future[Ack]) -> None:
        self._watching = None
        if self._closed or out.cancelled():
            return
        ack = out.result()
        if ack.status != "ok":
            self._listener.stop(LeaseLost(ack.detail or f"the mesh answered {ack.status!r}"))
            return
        # No news at once: the answer is that a cancel is known, or that nobody answers.
        delay_s = self._settle_s if ack.length > self._exchange.ledger.length else IDLE_S
        self._exchange.told(ack.length)
        if ack.cancel:
            self._listener.cancel()
        if self._parking.waits_for_children:
            self._watching = self._loop.call_later(delay_s, self._watch)
