"""The kit for agents' authors: plays a gateway against one agent and says what its author has to change.

    agent_kit.py         orders, starts and cancels, and what came back       agent_wire.py       one connection
    agent_probes.py      the list of probes                                   agent_receiver.py   where completions go
    agent_starts.py, agent_completions.py, agent_cancels.py, agent_requests.py, agent_after.py    the probes

Owns the order of probes and how their ends become results. Starts real operations: an agent with real effects is
checked where these do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from mesh.check import agent_after, agent_cancels, agent_completions, agent_requests, agent_starts
from mesh.check.agent_answers import Breach, Skip
from mesh.check.agent_kit import Kit, Sample, Settings
from mesh.check.agent_probes import FIRST, LAST, PROBES, Probe, ordered
from mesh.check.agent_receiver import Receiver
from mesh.check.agent_wire import NoAnswer
from mesh.check.report import Report, Result
from mesh.clock import monotonic_s
from mesh.errors import Unavailable
from mesh.pool import Target

ROOMS: Final = (agent_starts, agent_completions, agent_cancels, agent_requests, agent_after)
"""Imported for their probes."""
REACH_S_MAX: Final = 10.0
ANSWERING: Final = "Answer every request with HTTP/1.1, whatever came before it."

__all__ = ["PROBES", "Report", "Sample", "Settings", "check_agent", "ordered"]


async def check_agent(url: str, settings: Settings, tell: Callable[[Result], None] = lambda _: None) -> Report:
    """Try every probe on the agent at `url`; `tell` hears of each as it ends.

    Raises Malformed for a URL that is none, Unavailable when nobody is there, OSError when the receiver cannot listen.
    """
    target = Target.parse(url)
    wanted = [entry for entry in ordered() if not settings.only or entry.number in settings.only]
    results: dict[str, Result] = {}
    async with Receiver(settings.host, settings.port, settings.callback_url) as receiver:
        await _reach(url, target)
        kit = Kit(target, settings, receiver)
        gate = asyncio.Semaphore(settings.parallel)

        async def one(entry: Probe) -> None:
            async with gate:
                results[entry.number] = await run(entry, kit)
            tell(results[entry.number])

        first = await run(PROBES[FIRST], kit)
        if PROBES[FIRST] in wanted or first.verdict == "fail":
            results[FIRST] = first
            tell(first)
        await asyncio.gather(*(one(entry) for entry in wanted if entry.number not in (FIRST, *LAST)))
        for entry in wanted:
            if entry.number in LAST:
                await one(entry)
    return Report(url, "agent", [results[entry.number] for entry in ordered() if entry.number in results])


async def _reach(url: str, target: Target) -> None:
    """Raise Unavailable unless somebody takes a connection."""
    try:
        async with asyncio.timeout(REACH_S_MAX):
            _, writer = await asyncio.open_connection(target.host, target.port)
    except OSError as fault:
        why = "time over" if isinstance(fault, TimeoutError) else fault.strerror or str(fault)
        raise Unavailable(f"nobody answers at {url}: {why}. Start the agent, or give its URL") from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def run(entry: Probe, kit: Kit) -> Result:
    """One probe, its end as a result. A pass with `advice` carries a hint."""
    began_s = monotonic_s()
    verdict, seen, advice = "pass", "", ""
    try:
        advice = await entry.run(kit) or ""
    except Breach as breach:
        verdict, seen, advice = "fail", breach.seen, breach.advice
    except NoAnswer as fault:
        verdict, seen, advice = "fail", str(fault), ANSWERING
    except Skip as skip:
        verdict, seen = "skipped", str(skip)
    return Result(
        number=entry.number,
        name=entry.name,
        group=entry.group,
        rule=entry.rule,
        verdict=verdict,
        expected=entry.expected,
        seen=seen,
        advice=advice,
        reason=entry.reason,
        took_ms=round((monotonic_s() - began_s) * 1000),
    )
