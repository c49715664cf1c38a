"""Limits and fairness: what they cost (`limited`), and what they are good for (`spike`).

`limited` compares one handler under two endpoints of one stack, in turns: with every limit set and none reached, and
with one of them always reached, so that most calls stand in line. `spike` is a flood of one team over two gateways.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from bench.crowd import COUNT, LARGE, LIMIT, SECONDS, SERVICE_MS, SMALL, Crowd, Site
from bench.figures import Figures
from bench.generator import percentile
from bench.load import Options, drive
from bench.parts import Stack
from bench.work import ENDPOINT

KINDS: Final = ("limited", "spike")
LIMITED: Final = "bench-limited"
TIGHT: Final = "bench-tight"
PAIRS: Final = 3
"""Windows of each endpoint in a repeat, in turns: a machine that changes its pace changes it for both."""
SET: Final = {
    "max_concurrency": 1_000,
    "rate_per_s": 100_000,
    "max_waiting": 100_000,
    "limits": {"*": {"max_concurrency": 1_000, "rate_per_s": 100_000, "weight": 2}},
}
IN_LINE: Final = 4
"""Of `concurrency` callers one part of so many runs at `TIGHT`, the others wait in line."""


async def measure(name: str, options: Options) -> Figures:
    """One scenario. Raises BenchFailed."""
    figures = Figures(name)
    for _ in range(options.repeats):
        await (_limited if name == "limited" else _spike)(figures, options)
    return figures


async def _limited(figures: Figures, options: Options) -> None:
    async with Stack(Path(options.parent)) as stack:
        await stack.gateway()
        await stack.agent()
        record = msgspec.json.decode((await stack.ask(b"GET", f"/v1/endpoints/{ENDPOINT}")).body)
        target = {"kind": "http", "url": record["instances"][0]["url"]}
        tight = SET | {"max_concurrency": max(options.concurrency // IN_LINE, 1)}
        plain = "bench-plain"
        for endpoint, policy in ((plain, {}), (LIMITED, SET), (TIGHT, tight)):
            await stack.put_endpoint(endpoint, {"target": target, "policy": policy})
        rates: dict[str, list[float]] = {}
        cpu_us: dict[str, list[float]] = {}
        for turn in range(PAIRS):
            for endpoint in (plain, LIMITED, TIGHT):
                what = {"surface": "nexus", "where": {"operation": "echo", "endpoint": endpoint}}
                warmup_s = options.warmup_s if turn == 0 else options.warmup_s / 4
                loaded = await drive(stack, what, options, seconds=options.seconds / PAIRS, warmup_s=warmup_s)
                rates.setdefault(endpoint, []).append(loaded.result.ops / loaded.result.window_s)
                cpu_us.setdefault(endpoint, []).append(loaded.cpu_us()["store"])
    figures.add("off_per_s", median(rates[plain]), "no limits")
    figures.add("limited_per_s", median(rates[LIMITED]), "every limit of endpoint and namespace set, none reached")
    figures.add("in_line_per_s", median(rates[TIGHT]), f"{tight['max_concurrency']} at once, all other callers in line")
    figures.add("limited_ratio", median(rates[LIMITED]) / median(rates[plain]), "throughput, to that without limits")
    figures.add("in_line_ratio", median(rates[TIGHT]) / median(rates[plain]), "the same where three of four calls wait")
    for name, endpoint in (("off", plain), ("limited", LIMITED), ("in_line", TIGHT)):
        figures.add(f"{name}_store_cpu_us", median(cpu_us[endpoint]))


async def _spike(figures: Figures, options: Options) -> None:
    async with Site(Path(options.parent)) as site:
        crowd = Crowd(site)
        await crowd.flood()
        depths = await site.depths()
        await crowd.drained()
        lost = await crowd.lost()
    refused = [one for one in crowd.answers if one.status not in (200, 202)]
    statuses = Counter(one.status for one in refused)
    figures.add("offered_per_s", COUNT / SECONDS, f"{COUNT} starts in {SECONDS} s, 80/15/5 % of them of three teams")
    figures.add("accepted_ratio", len(crowd.accepted) / COUNT, f"refused: {dict(statuses) or 'none'}")
    figures.add("server_errors_count", sum(number for status, number in statuses.items() if status != 429))
    figures.add("without_retry_after_count", sum(one.header(b"retry-after") is None for one in refused))
    figures.add("in_flight_most_count", site.agent.most, f"limit {LIMIT}, counted by the agent ({SERVICE_MS} ms each)")
    figures.add("lost_count", lost, "accepted, and not ended as succeeded")
    figures.add("sent_twice_count", len(site.agent.seen) - len(set(site.agent.seen)))
    for team, times in sorted(crowd.queued_s().items()):
        name = "small" if team == SMALL else "large" if team == LARGE else "middle"
        figures.add(f"{name}_p50_s", percentile(times, 0.5))
        figures.add(f"{name}_p95_s", percentile(times, 0.95), f"from its start to the agent, of {len(times)}")
    work_s = len(crowd.accepted) * SERVICE_MS / 1000 / LIMIT
    figures.add("drained_s", crowd.drained_s, f"after the flood; {work_s:.1f} s of work in all")
    shown = ", ".join(f"{where} {depth}" for where, depth in depths.items())
    figures.add("depth_differs_count", len(set(depths.values())) - 1, f"while paused: {shown}")
