"""What the machine and the store count: CPU and memory by process, calls and memory of the store, fsyncs.

Reads /proc (Linux) and asks the store over its socket; starts nothing. CPU is `utime + stime` of /proc/PID/stat, which
the kernel accounts to the nanosecond and shows in ticks of 10 ms.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from mesh.ids import PARTITION
from mesh.store.address import Address
from mesh.store.keys import Keys
from mesh.store.link import Link

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
NAMESPACE: Final = "default"

MARK: Final = "mesh-bench-monitor-ends"
MARK_S: Final = 60.0
MONITOR_LINE_BYTES_MAX: Final = 1 << 20

_OURS: Final = frozenset({b"info", b"zcount", b"echo"})
_MONITORED: Final = re.compile(rb'\+\d+\.\d+ \[\d+ (?!lua)[^\]]*\] "(\w+)"')
_FSYNC: Final = re.compile(r"^(?:\d+ +)?(\d+\.\d+) (?:fdatasync|fsync)\(", re.MULTILINE)


class Usage(NamedTuple):
    """One process, or several together."""

    cpu_s: float
    rss_bytes: int


class StoreCounts(NamedTuple):
    """`cycles`: turns of its event loop, each at most one fsync; `operations`: kept in the namespace's index."""

    cycles: int
    used_bytes: int
    operations: int


class Reading(NamedTuple):
    """All meters at one moment: usage by the name of the part."""

    usage: dict[str, Usage]
    store: StoreCounts

    def cpu_since(self, earlier: Reading) -> dict[str, float]:
        """CPU seconds by part."""
        both = self.usage.keys() & earlier.usage.keys()
        return {name: now.cpu_s - earlier.usage[name].cpu_s for name, now in self.usage.items() if name in both}


def usage(pids: Iterable[int]) -> Usage:
    """Of the processes together, with what those had used that they started and that ended."""
    cpu_ticks = rss_pages = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # one that a gateway reads large JSON in comes and goes
        cpu_ticks += sum(map(int, fields[11:15]))
        rss_pages += int(fields[21])
    return Usage(cpu_ticks / TICKS_PER_S, rss_pages * PAGE_BYTES)


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except FileNotFoundError:  # a thread that ended just now
                continue
    return found


def is_store(pid: int) -> bool:
    """Whether this is the store server."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name in ("valkey-server", "redis-server")
    except FileNotFoundError:
        return False


def pin(pids: Sequence[int], core: int) -> None:
    """Let all threads of these processes run on one core only."""
    for pid in pids:
        with suppress(FileNotFoundError):  # it ended just now
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {core})


class StoreMeter:
    """Counters of the embedded store under `directory`."""

    def __init__(self, directory: Path) -> None:
        self._socket = str(directory / "s.sock")
        self._link = Link(Address(path=self._socket))
        self._index = Keys(PARTITION).index(NAMESPACE)

    async def open(self) -> None:
        await self._link.connect()

    async def close(self) -> None:
        await self._link.close()

    async def version(self) -> str:
        """Such as `valkey 9.1.2`."""
        server = await self._info("server")
        name = server.get("server_name", "redis")
        return f"{name} {server.get(f'{name}_version', '?')}"

    async def read(self) -> StoreCounts:
        stats, memory = await self._info("stats"), await self._info("memory")
        # ZCOUNT, because nobody else sends it: calls() must tell our commands from the gateway's.
        operations = int(await self._link.call("ZCOUNT", self._index, "-inf", "+inf"))
        return StoreCounts(int(stats["eventloop_cycles"]), int(memory["used_memory"]), operations)

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[Counter[str]]:
        """Commands that clients other than this meter send meanwhile, by name; what functions do inside is not counted.

        Seen by MONITOR, which slows the store: for counting, not for timing.
        """
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=MONITOR_LINE_BYTES_MAX)
        writer.write(b"MONITOR\r\n")
        await reader.readline()
        counted: Counter[str] = Counter()
        task = asyncio.create_task(_count(reader, counted))
        try:
            yield counted
            # What was sent before this was seen before it.
            await self._link.call("ECHO", MARK)
            await asyncio.wait_for(task, MARK_S)
        finally:
            task.cancel()
            writer.close()

    async def _info(self, section: str) -> dict[str, str]:
        told: bytes = await self._link.call("INFO", section)
        found: dict[str, str] = {}
        for line in told.decode().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found[name] = value
        return found


async def _count(reader: asyncio.StreamReader, counted: Counter[str]) -> None:
    async for line in reader:
        found = _MONITORED.match(line)
        name = found[1].lower() if found else b""
        if name == b"echo" and MARK.encode() in line:
            return
        if name and name not in _OURS:
            counted[name.decode()] += 1


def fsyncs_between(trace: Path, begin_ms: int, end_ms: int) -> int:
    """Calls of fsync and fdatasync in a `strace -ttt` log, begun within the window (wall clock)."""
    stamps = (float(stamp) * 1000 for stamp in _FSYNC.findall(trace.read_text(errors="replace")))
    return sum(begin_ms <= stamp < end_ms for stamp in stamps)
