"""Throughput, latency and cost of calls: one scenario per surface and kind of handler, a fresh stack per repeat.

Per repeat: `concurrency` callers for `seconds`, then one caller alone on the same store; once per scenario a short run
with the store's fsyncs counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from bench.figures import Figures
from bench.load import Measured, Options, drive
from bench.meters import Reading, fsyncs_between
from bench.parts import Stack
from bench.process import BenchFailed, can_trace
from bench.profiling import Profile
from bench.work import ASYNC_SERVICE, UNCHECKED_ENDPOINT

MIB: Final = 1 << 20
COUNTED: Final = 1_000
"""Operations over which the store's calls are counted."""
COUNTED_PER_S: Final = 500
"""Of a load shorter than two seconds."""
CALLS_SHOWN: Final = 4

KINDS: Final[dict[str, dict[str, Any]]] = {
    "nexus_sync": {"surface": "nexus", "where": {"operation": "echo"}},
    "pull_sync": {"surface": "nexus", "where": {"operation": "echo"}, "pulls": True},
    "v1_sync": {"surface": "v1", "where": {"operation": "echo"}},
    "typed_sync": {"surface": "nexus", "where": {"operation": "typed"}, "checked": True},
    "async": {
        "surface": "v1",
        "where": {"operation": "later", "service": ASYNC_SERVICE, "respond_async": True},
        "calls_back": True,
    },
}
"""What each scenario sends. As nexus_sync: `pull_sync`, to an agent that asks for its work; `typed_sync`, with pydantic
models and a registered JSON Schema, and the same handler once more under an endpoint that has no schema."""


async def measure(name: str, options: Options) -> Figures:
    """All repeats of one scenario. Raises BenchFailed."""
    figures = Figures(name)
    for repeat in range(options.repeats):
        profile = Profile(options.profile, name) if options.profile and repeat == 0 else None
        async with Stack(Path(options.parent), profiled=profile is not None and profile.needs_wrapper) as stack:
            await _repeat(stack, KINDS[name], figures, options, profile)
    await _count_fsyncs(KINDS[name], figures, options)
    return figures


async def _open(stack: Stack, kind: dict[str, Any]) -> dict[str, Any]:
    """Start what the scenario needs; the load's fixed part."""
    await stack.gateway()
    await stack.agent(pulls=bool(kind.get("pulls")))
    what = {"surface": kind["surface"], "where": dict(kind["where"])}
    if kind.get("calls_back"):
        await stack.receiver()
        what["where"]["callback"] = stack.callback
        what["tap"] = str(stack.tap)
    if kind.get("checked"):
        await stack.prove_checked(kind["where"]["operation"])
        await stack.open_unchecked()
    return what


async def _repeat(
    stack: Stack, kind: dict[str, Any], figures: Figures, options: Options, profile: Profile | None
) -> None:
    what = await _open(stack, kind)
    idle = await stack.read()
    if profile is not None:
        profile.begin(stack.pids()["gateway"][0], options.warmup_s + options.seconds)
    loaded = await drive(stack, what, options, seconds=options.seconds, warmup_s=options.warmup_s)
    if profile is not None:
        await profile.end()
    settled = await stack.read()
    if kind.get("checked"):
        await _compare_unchecked(stack, what, figures, options, loaded)
    alone = await drive(stack, what, options, concurrency=1, seconds=options.alone_s, warmup_s=options.alone_s / 4)
    result = loaded.result
    figures.add("throughput_per_s", result.ops / result.window_s)
    figures.add("alone_p50_ms", alone.result.p50_ms, _moment(kind))
    figures.add("alone_p99_ms", alone.result.p99_ms)
    figures.add("loaded_p50_ms", result.p50_ms)
    figures.add("loaded_p99_ms", result.p99_ms)
    for part, cpu_us in loaded.cpu_us().items():
        figures.add(f"{part}_cpu_us", cpu_us)
    figures.add("alone_gateway_cpu_us", alone.cpu_us()["gateway"])
    count = min(COUNTED, max(1, round(options.seconds * COUNTED_PER_S)))
    async with stack.store.calls() as calls:
        counted = await drive(stack, what, options, count=count)
    told = ", ".join(f"{name} {number / count:.3g}" for name, number in calls.most_common(CALLS_SHOWN))
    figures.add("store_calls_per_op", calls.total() / counted.result.answered, f"all commands of the gateway: {told}")
    finished = settled.store.operations - idle.store.operations
    grown = settled.store.used_bytes - idle.store.used_bytes
    figures.add("store_bytes", grown / finished, "with its events and idempotency entry; growth of used_memory")
    add_memory(figures, idle, settled)
    if result.repeats:
        figures.add("repeated_callbacks_count", result.repeats)
    if not can_trace():
        _bound_fsyncs(figures, loaded)


async def _compare_unchecked(
    stack: Stack, what: dict[str, Any], figures: Figures, options: Options, checked: Measured
) -> None:
    """The same handler and input without a schema, in the same stack right afterwards."""
    where = what["where"] | {"endpoint": UNCHECKED_ENDPOINT}
    unchecked = await drive(stack, what | {"where": where}, options, seconds=options.seconds, warmup_s=options.warmup_s)
    rates = [one.result.ops / one.result.window_s for one in (checked, unchecked)]
    figures.add("unchecked_ratio", rates[0] / rates[1], "throughput, to that of the same handler without a schema")
    cpu_us = [one.cpu_us()["gateway"] for one in (checked, unchecked)]
    figures.add("check_cpu_us", cpu_us[0] - cpu_us[1], "of the gateway, more than without a schema")


def _moment(kind: dict[str, Any]) -> str:
    return "until the callback came; the handler completes 1 ms after its 201" if kind.get("calls_back") else ""


def add_memory(figures: Figures, before: Reading, after: Reading) -> None:
    """Resident memory of every part at both moments."""
    for part, usage in before.usage.items():
        figures.add(f"{part}_rss_before_mib", usage.rss_bytes / MIB)
        figures.add(f"{part}_rss_after_mib", after.usage[part].rss_bytes / MIB)


def _bound_fsyncs(figures: Figures, loaded: Measured) -> None:
    figures.add("fsyncs_per_op", loaded.per_op("cycles"), "upper bound: turns of the store's event loop (no strace)")


async def _count_fsyncs(kind: dict[str, Any], figures: Figures, options: Options) -> None:
    """A short run of its own with the gateway's tree under strace, which slows the store a little."""
    if not can_trace():
        return
    async with Stack(Path(options.parent), trace=True) as stack:
        try:
            what = await _open(stack, kind)
        except BenchFailed:
            traced = None  # not allowed to trace here
        else:
            traced = await drive(stack, what, options, seconds=options.trace_s, warmup_s=options.warmup_s / 2)
            result = traced.result
            fsyncs = fsyncs_between(stack.fsync_trace, result.begin_ms, result.end_ms)
    if traced is not None:
        figures.add("fsyncs_per_op", fsyncs / traced.result.ops, "counted by strace in a run of its own")
        return
    async with Stack(Path(options.parent)) as stack:
        what = await _open(stack, kind)
        bounded = await drive(stack, what, options, seconds=options.trace_s, warmup_s=options.warmup_s / 2)
        _bound_fsyncs(figures, bounded)
