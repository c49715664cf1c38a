"""Starts by the thousand: one request of many lines beside as many single starts, on the same store.

Both sides start what waits for an agent that is not there, so that it is the starting that is measured: by one caller
(alone), by many at once (loaded), and in one batch. Every outcome is checked, and counted in the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from bench.figures import Figures
from bench.load import Options, drive
from bench.parts import Stack
from bench.process import BenchFailed
from bench.work import PARKED_ENDPOINT, key_of, new_tag, surface_of
from mesh.clock import monotonic_s
from mesh.pool import Pool, Target

KINDS: Final = ("batch",)
LINES: Final = 10_000
LINES_PER_S: Final = 5_000
"""Of a run shorter than two seconds."""
REPLY_BYTES_MAX: Final = 16 << 20
TIMEOUT_S: Final = 60.0
SINGLE: Final[dict[str, Any]] = {
    "surface": "v1",
    "where": {"operation": "echo", "endpoint": PARKED_ENDPOINT, "respond_async": True},
}


async def measure(_name: str, options: Options) -> Figures:
    """All repeats. Raises BenchFailed."""
    figures = Figures("batch")
    for _ in range(options.repeats):
        async with Stack(Path(options.parent)) as stack:
            await stack.gateway()
            await stack.put_endpoint(PARKED_ENDPOINT, {"target": {"kind": "http"}})
            await _repeat(stack, figures, options)
    return figures


async def _repeat(stack: Stack, figures: Figures, options: Options) -> None:
    loaded = await drive(stack, SINGLE, options, seconds=options.seconds, warmup_s=options.warmup_s)
    alone = await drive(stack, SINGLE, options, concurrency=1, seconds=options.alone_s, warmup_s=options.alone_s / 4)
    singles = [one.result.ops / one.result.window_s for one in (loaded, alone)]
    lines = min(LINES, max(1, round(options.seconds * LINES_PER_S)))
    await _batch(stack, min(lines, 500))  # warms the gateway up
    before = await stack.read()
    per_s = await _batch(stack, lines)
    after = await stack.read()
    stored = after.store.operations - before.store.operations
    if stored != lines:
        raise BenchFailed(f"{lines} lines were accepted and {stored} operations are stored{stack.said()}")
    used = after.cpu_since(before)
    figures.add("lines_count", lines)
    figures.add("batch_per_s", per_s, "one request, until its last outcome")
    figures.add("single_per_s", singles[0], f"{options.concurrency} callers, a start and its answer each")
    figures.add("single_alone_per_s", singles[1], "one caller, one start after the other")
    figures.add("single_ratio", per_s / singles[0], "batch to single starts of all callers")
    figures.add("alone_ratio", per_s / singles[1], "batch to one caller's single starts")
    for part in ("gateway", "store"):
        figures.add(f"{part}_cpu_us", used[part] * 1e6 / lines)
        figures.add(f"single_{part}_cpu_us", loaded.cpu_us()[part])
    cycles = after.store.cycles - before.store.cycles
    figures.add("fsyncs_per_op", cycles / lines, "upper bound: turns of the store's event loop")


async def _batch(stack: Stack, lines: int) -> float:
    """Lines per second of one batch, every outcome checked."""
    surface, tag = surface_of("v1", **SINGLE["where"]), new_tag()
    keys = [key_of(tag, number) for number in range(lines)]
    body = b"".join([b'%b,"idempotency_key":"%b"}\n' % (surface.request(key)[1][:-1], key) for key in keys])
    pool = Pool(reply_bytes_max=REPLY_BYTES_MAX)
    target = Target.parse(stack.url)
    headers = [(b"content-type", b"application/x-ndjson")]
    begun_s = monotonic_s()
    reply = await pool.post(target, b"/v1/operations/batch", headers, body, timeout_s=TIMEOUT_S)
    took_s = monotonic_s() - begun_s
    await pool.close()
    outcomes = [msgspec.json.decode(line) for line in reply.body.splitlines()]
    told = [(one["line"], one["status"], one["idempotency_key"]) for one in outcomes]
    if told != [(number, 202, key.decode()) for number, key in enumerate(keys, start=1)]:
        raise BenchFailed(f"a batch was answered {reply.status} {reply.body[:300]!r}{stack.said()}")
    if len({one["id"] for one in outcomes}) != lines:
        raise BenchFailed("two lines were answered with one operation")
    return lines / took_s
