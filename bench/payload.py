"""One large payload through start, agent and result: how fast, and how much memory each process ever had."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Final

import mesh
from bench.figures import Figures
from bench.load import Options
from bench.parts import Stack
from bench.process import BenchFailed
from mesh.blob import PIECE_BYTES
from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError
from mesh.wire import parse_rfc3339

KINDS: Final = ("payload",)
MIB: Final = 1 << 20
WARM_BYTES: Final = 1 * MIB
WAIT_S: Final = 600.0
_peak: Final = re.compile(r"VmHWM:\s+(\d+) kB")


async def measure(options: Options) -> Figures:
    """`options.payload_mib` there and back, once per repeat; memory beside what 1 MiB took before."""
    figures = Figures("payload")
    size = options.payload_mib * MIB
    async with Stack(Path(options.parent)) as stack:
        await stack.gateway()
        await stack.command("agent", [sys.executable, "-m", "bench.payload_agent", stack.url])
        source = stack.directory / "payload.bin"
        await asyncio.to_thread(_write, source, WARM_BYTES)
        async with mesh.Client(stack.url) as client:
            await _until_there(client, stack)
            await _once(client, source)
            before = peaks(stack)
            await asyncio.to_thread(_write, source, size)
            for _ in range(options.repeats):
                accepted_s, agent_s, fetched_s = await _once(client, source)
                figures.add("payload_mib", size / MIB)
                figures.add("start_mib_per_s", size / MIB / accepted_s, "until it is accepted; hashed before")
                figures.add("agent_mib_per_s", 2 * size / MIB / agent_s, "to the agent and back, both ways counted")
                figures.add("result_mib_per_s", size / MIB / fetched_s, "the result to a file")
            for name, peak in peaks(stack).items():
                figures.add(f"{name}_peak_mib", peak / MIB, "the most memory it ever had")
                figures.add(f"{name}_growth_mib", (peak - before[name]) / MIB, "since a payload of 1 MiB")
    return figures


async def _once(client: mesh.Client, source: Path) -> tuple[float, float, float]:
    """Seconds of the start, of the agent's part, of reading the result."""
    payload = mesh.Blob(source)
    digest = await payload.digest()
    begun_s = monotonic_s()
    handle = await client.start("payload", "payload", "copy", payload, output=mesh.Blob)
    accepted_s = monotonic_s() - begun_s
    while (record := await handle.get())["closed_at"] is None:
        await sleep(0.02)
        if monotonic_s() - begun_s > WAIT_S:
            raise BenchFailed(f"the operation is {record['state']}")
    begun_s = monotonic_s()
    result = await handle.result(timeout_s=WAIT_S)
    fetched_s = monotonic_s() - begun_s
    if await result.digest() != digest:
        raise BenchFailed("another payload came back")
    agent_ms = parse_rfc3339(str(record["closed_at"])) - parse_rfc3339(record["created_at"])
    return accepted_s, agent_ms / 1000, fetched_s


def peaks(stack: Stack) -> dict[str, int]:
    """The most memory that each part ever had, this process included, in bytes."""
    named = {**stack.pids(), "caller": ["self"]}
    return {name: sum(_peak_bytes(pid) for pid in pids) for name, pids in named.items()}


def _peak_bytes(pid: int | str) -> int:
    found = _peak.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    return int(found[1]) << 10 if found else 0


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, PIECE_BYTES):
            file.write(start.to_bytes(8, "big") * (PIECE_BYTES // 8))


async def _until_there(client: mesh.Client, stack: Stack) -> None:
    while True:
        stack.parts["agent"].check()
        try:
            await client.start("payload", "payload", "copy", mesh.Blob(data=b"1"), request_timeout_ms=1_000)
        except MeshError:
            await sleep(0.05)
        else:
            return
