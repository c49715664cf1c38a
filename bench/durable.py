"""What durable handlers cost: steps on disk per second, replays, and operations that sleep. One agent process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import msgspec

from bench.calls import MIB, add_memory
from bench.figures import Figures
from bench.generator import percentile
from bench.load import Options
from bench.meters import Reading, usage
from bench.parts import Stack
from bench.process import BenchFailed
from bench.work import ENDPOINT
from mesh.clock import monotonic_s, now_ms, sleep

KINDS: Final = ("durable_steps", "replay", "asleep")
REPLAYED: Final = 1_000
MANY: Final = 10_000
ASLEEP: Final = 10_000
"""Twice: the burst that begins the first ones leaves the process with the size of its busiest moment, as any burst
does; what the next ones add is what sleepers cost. Fewer where fewer operations are to be parked."""
STARTS_AT_ONCE: Final = 64
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.05
REPLAYS: Final = 5
"""One a second of the load, at most."""
TRIES_MAX: Final = 5
LONGER: Final = 3


async def measure(name: str, options: Options) -> Figures:
    """One scenario. Raises BenchFailed."""
    figures = Figures(name)
    repeat = {"durable_steps": _steps, "replay": _replay, "asleep": _asleep}[name]
    for _ in range(options.repeats):
        async with Stack(Path(options.parent)) as stack:
            await stack.gateway()
            await stack.agent()
            await repeat(stack, figures, options)
    return figures


class Stepped(NamedTuple):
    """What ended within a window of `seconds`: how long each step took, and the meters at both of its ends."""

    took_us: list[float]
    seconds: float
    before: Reading
    after: Reading


async def _steps(stack: Stack, figures: Figures, options: Options) -> None:
    """Steps acknowledged after fsync: many operations at once, then one alone."""
    for callers, seconds, warmup_s in (
        (options.concurrency, options.seconds, options.warmup_s),
        (1, options.alone_s, options.alone_s / 4),
    ):
        took_us, window_s, before, after = await _stepped(stack, callers, seconds, warmup_s)
        kind = "alone" if callers == 1 else "loaded"
        figures.add(f"{kind}_per_s", len(took_us) / window_s, f"{callers} operations at once, one agent process")
        figures.add(f"{kind}_p50_ms", percentile(took_us, 0.5) / 1000)
        figures.add(f"{kind}_p99_ms", percentile(took_us, 0.99) / 1000)
        for part, cpu_s in after.cpu_since(before).items():
            figures.add(f"{kind}_{part}_cpu_us", cpu_s * 1e6 / len(took_us))
        if callers > 1:
            calls = after.store.operations - before.store.operations
            figures.add("operations_count", calls + callers)
            add_memory(figures, before, after)


async def _stepped(stack: Stack, callers: int, seconds: float, warmup_s: float) -> Stepped:
    """One window; a longer one where it was over before any step ended in it, as on a busy machine."""
    for _ in range(TRIES_MAX):
        begin_ms = now_ms() + round(warmup_s * 1000)
        window = {"begin_ms": begin_ms, "end_ms": begin_ms + round(seconds * 1000)}
        ids = [await _start(stack, "steps", window) for _ in range(callers)]
        await _until_ms(begin_ms)
        before = await stack.read()
        await _until_ms(window["end_ms"])
        after = await stack.read()
        results = [await _result(stack, one) for one in ids]
        took_us = sorted(took for result in results for took in result["took_us"])
        if took_us:
            return Stepped(took_us, seconds, before, after)
        seconds, warmup_s = LONGER * seconds, LONGER * warmup_s
    raise BenchFailed("no step ended within the window")


async def _replay(stack: Stack, figures: Figures, options: Options) -> None:
    """From the handler's first line to the first thing that is new, the journal read on the way."""
    pid = stack.pids()["handler"][0]
    replays = min(REPLAYS, max(1, round(options.seconds)))
    taken = [(await _replayed(stack, REPLAYED))["took_ms"] for _ in range(replays)]
    figures.add("replay_1000_ms", median(taken), f"median of {replays} replays of {REPLAYED} steps")
    many = min(MANY, options.parked)
    before = await _peak(pid)
    figures.add("replay_many_ms", (await _replayed(stack, many))["took_ms"], f"{many} steps")
    figures.add("peak_mib", (await _peak(pid) - before) / MIB, f"growth of the agent's peak memory over {many} steps")


async def _replayed(stack: Stack, count: int) -> dict[str, Any]:
    for _ in range(TRIES_MAX):
        result = await _result(stack, await _start(stack, "replayed", count))
        if result["attempt"] > 1:
            return result
        # So late on a busy machine that its wait was over before it could leave.
    raise BenchFailed(f"{TRIES_MAX} operations were not replayed")


async def _asleep(stack: Stack, figures: Figures, options: Options) -> None:
    """Operations that sleep for an hour: memory and CPU of the agent that began them."""
    pid = stack.pids()["handler"][0]
    count = min(ASLEEP, options.parked)
    fresh = usage([pid])
    await _all_asleep(stack, count)
    before = usage([pid])
    await _all_asleep(stack, count)
    await sleep(min(2.0, options.idle_s))
    after, begun_s = usage([pid]), monotonic_s()
    figures.add("asleep_count", 2 * count)
    figures.add("agent_mib", (after.rss_bytes - before.rss_bytes) / MIB, f"what {count} sleepers add to {count} others")
    burst = (before.rss_bytes - fresh.rss_bytes) / MIB
    figures.add("burst_mib", burst, f"what starting the first {count} of them added to a fresh agent")
    await sleep(options.idle_s)
    rested = usage([pid])
    percent = (rested.cpu_s - after.cpu_s) / (monotonic_s() - begun_s) * 100
    figures.add("agent_idle_cpu_percent", percent, "registration's heartbeats included")


async def _all_asleep(stack: Stack, count: int) -> None:
    ids: list[str] = []

    async def starts(share: int) -> None:
        for _ in range(share):
            ids.append(await _start(stack, "asleep"))  # noqa: PERF401 - many of these at once fill one list

    await _in_shares(count, starts)
    left = list(ids)
    end_s = monotonic_s() + PATIENCE_S

    async def look(_: int) -> None:
        while left:
            one = left.pop()
            while "suspended" not in await _record(stack, one):
                if monotonic_s() > end_s:
                    raise BenchFailed(f"{one} does not fall asleep")
                await sleep(POLL_S)

    await _in_shares(count, look)


async def _in_shares(count: int, work: Callable[[int], Any]) -> None:
    shares = [count // STARTS_AT_ONCE + (at < count % STARTS_AT_ONCE) for at in range(STARTS_AT_ONCE)]
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(work(share))


async def _start(stack: Stack, operation: str, *value: Any) -> str:
    document: dict[str, Any] = {"endpoint": ENDPOINT, "service": ENDPOINT, "operation": operation}
    if value:
        document["input"] = value[0]
    reply = await stack.ask(b"POST", "/v1/operations", msgspec.json.encode(document), prefer=b"respond-async")
    if reply.status != 202:
        raise BenchFailed(f"{operation} was answered {reply.status} {reply.body!r}")
    return msgspec.json.decode(reply.body)["id"]


async def _record(stack: Stack, operation_id: str) -> dict[str, Any]:
    return msgspec.json.decode((await stack.ask(b"GET", f"/v1/operations/{operation_id}")).body)


async def _result(stack: Stack, operation_id: str) -> dict[str, Any]:
    end_s = monotonic_s() + PATIENCE_S
    while monotonic_s() < end_s:
        reply = await stack.ask(b"GET", f"/v1/operations/{operation_id}/result?wait=20")
        if reply.status == 200:
            return msgspec.json.decode(reply.body)
        if reply.status != 202:
            raise BenchFailed(f"{operation_id} ended {reply.status} {reply.body[:500]!r}{stack.said()}")
    raise BenchFailed(f"{operation_id} does not end{stack.said()}")


async def _until_ms(at_ms: int) -> None:
    await sleep(max(0.0, (at_ms - now_ms()) / 1000))


async def _peak(pid: int) -> int:
    """The most memory that a process has ever had, in bytes."""
    status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
