"""One load on one stack: drives a generator and reads the meters at the borders of its window.

The generator is our own (bench/generator.py) or wrk (bench/wrk.py); what comes back is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from bench import wrk
from bench.generator import Result
from bench.meters import Reading
from bench.parts import Stack
from bench.process import BenchFailed
from bench.work import new_tag

GRACE_S = 100.0


class Options(msgspec.Struct, frozen=True):
    """What the command line says. Durations in seconds."""

    seconds: float = 10
    warmup_s: float = 2
    alone_s: float = 4
    trace_s: float = 3
    idle_s: float = 10
    repeats: int = 3
    concurrency: int = 64
    parked: int = 100_000
    payload_mib: int = 1_024
    generator: str = "plain"
    pinned: bool = False
    parent: str = ""
    profile: str = ""


class Measured(NamedTuple):
    """What the generator saw, and the meters at both ends of its window."""

    result: Result
    before: Reading
    after: Reading

    def cpu_us(self) -> dict[str, float]:
        """CPU per operation by part."""
        used = self.after.cpu_since(self.before)
        return {name: cpu_s * 1e6 / self.result.ops for name, cpu_s in used.items()}

    def per_op(self, counter: str) -> float:
        """Growth of a counter of the store per operation."""
        return (getattr(self.after.store, counter) - getattr(self.before.store, counter)) / self.result.ops


async def drive(stack: Stack, what: dict[str, Any], options: Options, **how: Any) -> Measured:
    """Run one load. `what`: surface, where and tap of a generator.Load; `how`: concurrency, seconds, warmup_s, count.

    Raises BenchFailed, also when answers were wrong: unequal numbers of answers, ids and stored operations included.
    """
    load = {"url": stack.url, "tag": new_tag(), "concurrency": options.concurrency, **what, **how}
    stack.pinned = options.pinned
    stored_before = (await stack.store.read()).operations
    if options.generator == "wrk" and not what.get("tap") and not how.get("count"):
        measured = Measured(*await wrk.drive(stack, load))
    else:
        measured = await _drive_plain(stack, load)
    result = measured.result
    if result.errors:
        raise BenchFailed(f"{result.errors} wrong answers, the first: {result.samples}{stack.said()}")
    if not result.ops:
        raise BenchFailed("no operation ended within the window")
    if result.unique != result.answered:
        raise BenchFailed(f"{result.answered} answers named {result.unique} operations")
    stored = (await stack.store.read()).operations - stored_before
    # wrk hangs up at the end of warm-up and window: what it had in flight is stored and not answered.
    cut_off = 2 * load["concurrency"] if options.generator == "wrk" else 0
    if not result.answered <= stored <= result.answered + cut_off:
        raise BenchFailed(f"{result.answered} operations were answered and {stored} are stored")
    return measured


async def _drive_plain(stack: Stack, load: dict[str, Any]) -> Measured:
    part = await stack.generator(load)
    within_s = load.get("warmup_s", 0) + GRACE_S
    await part.event("begin", within_s)
    before = await stack.read()
    await part.event("end", load.get("seconds", 0) + load.get("count", 0) / 100 + GRACE_S)
    after = await stack.read()
    event = await part.event("result", GRACE_S)
    await part.process.wait()
    del stack.parts[part.name]
    return Measured(msgspec.convert({name: event[name] for name in event if name != "event"}, Result), before, after)
