"""What Mesh costs when nothing happens, and how soon it is there: parked operations, cold start."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bench.calls import add_memory
from bench.figures import Figures
from bench.load import Options, drive
from bench.parts import Stack
from bench.process import BenchFailed
from bench.work import ASYNC_SERVICE, ENDPOINT, PARKED_ENDPOINT
from gateway.demo.fleet import free_ports
from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError

SETTLE_S: Final = 2.0
FIRST_ANSWER_S: Final = 60.0
POLL_S: Final = 0.002
EXISTING_SHARE: Final = 0.2
"""Of the load's seconds: how long an existing data directory was filled."""

STARTED: Final[dict[str, Any]] = {
    "surface": "v1",
    "where": {"operation": "never", "service": ASYNC_SERVICE, "respond_async": True},
}
WAITING: Final[dict[str, Any]] = {
    "surface": "v1",
    "where": {"operation": "echo", "endpoint": PARKED_ENDPOINT, "respond_async": True},
}
SYNC: Final[dict[str, Any]] = {"surface": "nexus", "where": {"operation": "echo"}}


async def measure_parked(options: Options) -> Figures:
    """Half of the operations started by an agent that never completes, half waiting for an agent that is not there."""
    figures = Figures("parked")
    async with Stack(Path(options.parent)) as stack:
        await stack.gateway()
        await stack.agent()
        await stack.put_endpoint(PARKED_ENDPOINT, {"target": {"kind": "http"}})
        empty = await stack.read()
        bare = await _idle(stack, options.idle_s / 2)
        half = options.parked // 2
        for what in (STARTED, WAITING):
            await drive(stack, what, options, count=half)
        parked = await stack.read()
        count = parked.store.operations - empty.store.operations
        figures.add("parked_count", count)
        idle = await _idle(stack, options.idle_s)
        figures.add("idle_cpu_percent", sum(idle.values()), "all processes")
        for part, percent in idle.items():
            figures.add(f"{part}_idle_cpu_percent", percent)
        figures.add("empty_idle_cpu_percent", sum(bare.values()), "all processes, before anything was parked")
        figures.add("store_bytes", (parked.store.used_bytes - empty.store.used_bytes) / count)
        after = await stack.read()
        add_memory(figures, empty, after)
        if after.store.operations != parked.store.operations:
            raise BenchFailed("parked operations went away by themselves")
        await stack.first_answer()
    return figures


async def _idle(stack: Stack, seconds: float) -> dict[str, float]:
    """CPU of each part in percent of a core."""
    await sleep(min(SETTLE_S, seconds))
    before, begun_s = await stack.read(), monotonic_s()
    await sleep(seconds)
    after, window_s = await stack.read(), monotonic_s() - begun_s
    return {name: cpu_s / window_s * 100 for name, cpu_s in after.cpu_since(before).items()}


async def measure_cold_start(options: Options) -> Figures:
    """From starting `mesh dev` to the first durable answer of an agent that is up already, page cache warm."""
    figures = Figures("cold_start")
    async with Stack(Path(options.parent)) as stack:
        (port,) = free_ports(1)
        await stack.agent(port=port, register=False)
        await _agent_answers(stack, port)
        await _first_answer(stack, port)  # warms the page cache
        await stack.stop("gateway", gently=True)
        for _ in range(options.repeats):
            shutil.rmtree(stack.data)
            figures.add("empty_s", await _first_answer(stack, port), "empty data directory; registration included")
            await stack.stop("gateway", gently=True)
        await stack.gateway()
        await drive(stack, SYNC, options, seconds=max(options.seconds * EXISTING_SHARE, 0.2))
        figures.add("existing_count", (await stack.store.read()).operations)
        await stack.stop("gateway", gently=True)
        for _ in range(options.repeats):
            figures.add("existing_s", await _first_answer(stack), "data directory with `existing_count` operations")
            await stack.stop("gateway", gently=True)
    return figures


async def _first_answer(stack: Stack, register_port: int = 0) -> float:
    """Seconds from the start of `mesh dev` to the answer of a call, registered first when a port is given."""
    begun_s = monotonic_s()
    await stack.spawn_gateway()
    part = stack.parts["gateway"]
    steps = [stack.first_answer]
    if register_port:
        document = {"target": {"kind": "http", "url": f"http://127.0.0.1:{register_port}"}}
        steps.insert(0, lambda: stack.put_endpoint(ENDPOINT, document))
    while steps:
        try:
            await steps[0]()
            steps.pop(0)
        except MeshError as error:
            part.check()
            if monotonic_s() - begun_s > FIRST_ANSWER_S:
                raise part.failed(f"gave no answer within {FIRST_ANSWER_S:g} s: {error}") from error
            await sleep(POLL_S)
    return monotonic_s() - begun_s


async def _agent_answers(stack: Stack, port: int) -> None:
    """Until the handler takes requests."""
    end_s = monotonic_s() + FIRST_ANSWER_S
    while monotonic_s() < end_s:
        stack.parts["agent"].check()
        with suppress(MeshError):
            return await stack.reach(f"http://127.0.0.1:{port}/healthz")
        await sleep(POLL_S)
    raise stack.parts["agent"].failed("does not answer")
