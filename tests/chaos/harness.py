"""A run on a ground of real processes: callers at work, faults on schedule, heal, quiesce, read everything, dump.

    async with Ground(directory, seed) as ground:
        run = await carry_out(ground, schedule(seed, seconds))
    verdict = check(run.lines, run.snapshot, ...)

Judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mesh.clock import sleep
from mesh.errors import MeshError
from mesh.ids import PARTITION
from mesh.machine import Delivery
from mesh.store.keys import Keys
from tests.chaos.asking import Caller
from tests.chaos.callers import Crowd
from tests.chaos.faults import Deed, Fault, Phase
from tests.chaos.ground import Ground, cancel
from tests.chaos.history import Kind, Line, Recorder, What, monotonic_ns, read
from tests.chaos.processes import child_of, ended
from tests.chaos.snapshot import Snapshot, take
from tests.servers import Proxy

CALLERS = 200
READERS = 32
WARM_UP_S = 1.5
STORE_ANSWERS_S = 0.2
PATIENCE_S = 45.0
"""How long callers may take to finish what they began, and then the work to end."""
OWED = {Delivery.DUE, Delivery.LEASED}


class Run(NamedTuple):
    """What a run leaves behind. `ended`: processes that ended though nobody touched them; `quiet`: all work ended."""

    lines: list[Line]
    snapshot: Snapshot
    ended: list[str]
    quiet: bool


async def carry_out(
    ground: Ground, phases: Sequence[Phase], *, callers: int = CALLERS, jobs: str = "", patience_s: float = PATIENCE_S
) -> Run:
    """The whole run. `jobs`: the callers ask for this one only, and leave."""
    harness, record = ground.recorder("harness"), ground.recorder("callers")
    crowd = Crowd(ground.seed, ground.gateways, ground.callback_url, only=jobs)
    asking = [
        asyncio.create_task(crowd.run(Caller(f"caller-{number}", ground.pool, record), number))
        for number in range(callers)
    ]
    try:
        await sleep(WARM_UP_S)
        for phase in phases:
            begun_ns = monotonic_ns()
            await asyncio.gather(sleep(phase.length_s), *[_break(ground, harness, fault) for fault in phase.faults])
            detail = {"name": phase.name, "faults": [fault.name for fault in phase.faults]}
            harness(Kind.INFO, What.PHASE, detail=detail | {"begun_ns": begun_ns, "ended_ns": monotonic_ns()})
        crowd.ending.set()
        await asyncio.wait(asking, timeout=patience_s)
    finally:
        await cancel(*asking)
    quiet = await _quiesce(ground, patience_s)
    await _read_everything(ground, ground.recorder("auditor"))
    snapshot = await take(ground.link)
    return Run(read(path for path in ground.histories if path.exists()), snapshot, ground.ended, quiet)


# Breaking


async def _break(ground: Ground, record: Recorder, fault: Fault) -> None:
    await sleep(fault.after_s)
    detail: dict[str, Any] = {"name": fault.name, "deed": fault.deed, "victim": fault.victim}
    with suppress(MeshError, TimeoutError):  # the store may be away, or frozen
        async with asyncio.timeout(STORE_ANSWERS_S):
            detail["at_ms"] = await _now_ms(ground)
    if ground.dev and fault.victim == "store":
        detail["fired"] = await _kill_child(ground)
        record(Kind.INFO, What.FAULT, detail=detail)
        return
    if fault.deed is Deed.CUT:
        detail["fired"] = await _cut(ground.proxies[fault.victim], fault.down_s)
        record(Kind.INFO, What.FAULT, detail=detail)
        return
    process = ground.processes[fault.victim]
    ground.down.add(fault.victim)
    detail["fired"] = process.kill() if fault.deed is Deed.KILL else process.freeze()
    if fault.alone:
        detail["held"] = await _held(ground, fault.victim)
    record(Kind.INFO, What.FAULT, detail=detail)
    await sleep(fault.down_s)
    if fault.deed is Deed.KILL:
        process.start()
    else:
        process.thaw()
    ground.down.discard(fault.victim)


async def _cut(proxy: Proxy, held_s: float) -> bool:
    """Let the store work and nobody hear of it; whether a line was there to cut."""
    proxy.replies_flow.clear()
    await sleep(held_s)
    lines = len(proxy._writers)
    proxy.cut()
    proxy.chunks.clear()
    proxy.replies_flow.set()
    return lines > 0


async def _kill_child(ground: Ground) -> bool:
    """Kill the store under `mesh dev`; whether it is gone. Its supervisor is the gateway, not we."""
    pid = child_of(ground.processes["gateway-a"].pid, "valkey-server")
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself since it was looked up
        return False
    while not ended(pid):
        await sleep(0.005)
    return True


async def _now_ms(ground: Ground) -> int:
    seconds, micros = await ground.link.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def _held(ground: Ground, gateway: str) -> list[str]:
    """Operations leased to the sessions of a gateway that cannot work on them any more."""
    keys, link = Keys(PARTITION), ground.link
    sessions = [one.decode() for one in await link.call("ZRANGE", keys.sessions, 0, -1)]
    calls = [link.call("ZRANGE", keys.held(one), 0, -1) for one in sessions if one.startswith(f"{gateway}.")]
    return [op.decode() for call in calls for op in await call]


# Ending


async def _quiesce(ground: Ground, patience_s: float) -> bool:
    """Wait until every operation has ended and owes nothing; whether that came true."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    snapshot = await take(ground.link)
                except MeshError:
                    await sleep(0.5)
                    continue
                heads = [one.head for one in snapshot.operations.values()]
                live = any(not one.state.terminal for one in snapshot.operations.values())
                if not live and not any(OWED & {head.start, head.cancel, head.callback} for head in heads):
                    return True
                await sleep(0.5)
    except TimeoutError:
        return False


async def _read_everything(ground: Ground, record: Recorder) -> None:
    """Every operation's result, on every gateway, twice."""
    index = Keys(PARTITION).index("default")
    ops = [op.decode() for op in await ground.link.call("ZRANGE", index, 0, -1)]
    waiting = [(op, gateway) for _ in range(2) for gateway in ground.gateways for op in ops]

    async def reader(number: int) -> None:
        caller = Caller(f"auditor-{number}", ground.pool, record)
        while waiting:
            op, gateway = waiting.pop()
            path = f"/v1/operations/{op}/result".encode()
            await caller.ask(What.RESULT, gateway, b"GET", path, [], timeout_s=5, op=op)

    await asyncio.gather(*[reader(number) for number in range(READERS)])
