"""The durable handlers that are measured; part of the handler's process (agent.py).

Their steps do no work: what is measured is the journal. Times are taken where an author would feel them, around the
`await`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

import mesh
from mesh.clock import monotonic_s, now_ms

STEPS_MAX: Final = 90_000
"""An operation's journal has 100,000 entries."""
ASLEEP_S: Final = 3600.0
SUSPENDED_S: Final = 1.0
"""Longer than an attempt lingers: what comes after it is another attempt, which replays."""


class Window(msgspec.Struct):
    """Steps that ended between these moments count, in Unix milliseconds."""

    begin_ms: int
    end_ms: int


class Stepped(msgspec.Struct):
    """What one operation did in its window: steps, and how long each took, in microseconds."""

    count: int
    took_us: list[int]


async def work() -> dict[str, Any]:
    """A small result."""
    return {"ok": True, "tokens": 42}


@mesh.durable
async def steps(ctx: mesh.Context, window: dict[str, int]) -> dict[str, Any]:
    """One step after the other until the window ends."""
    within = Window(**window)
    took_us: list[int] = []
    for _ in range(STEPS_MAX):
        began_s = monotonic_s()
        await ctx.step("step", work)
        at_ms = now_ms()
        if at_ms >= within.end_ms:
            break
        if at_ms >= within.begin_ms:
            took_us.append(round((monotonic_s() - began_s) * 1e6))
    return {"count": len(took_us), "took_us": took_us}


@mesh.durable
async def replayed(ctx: mesh.Context, count: int) -> dict[str, Any]:
    """So many steps, then a wait that ends the attempt; what the next one took for them."""
    began_s = monotonic_s()
    for _ in range(count):
        await ctx.step("step", work)
    took_ms = (monotonic_s() - began_s) * 1000
    attempt = ctx.attempt
    await ctx.sleep(SUSPENDED_S)
    return {"attempt": attempt, "took_ms": took_ms}


@mesh.durable
async def asleep(ctx: mesh.Context) -> None:
    """A step, then an hour of nothing."""
    await ctx.step("step", work)
    await ctx.sleep(ASLEEP_S)


HANDLERS: Final = [steps, replayed, asleep]
