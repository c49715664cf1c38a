"""One process of a measurement: started to die with us, listened to line by line, ended by its own pid.

Knows nothing of what the process is for (parts.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.meters import tree
from mesh.clock import monotonic_s, sleep

ROOT: Final = Path(__file__).resolve().parent.parent
STOP_S: Final = 15.0
POLL_S: Final = 0.01
EVENT_BYTES_MAX: Final = 1 << 20
LOG_CHARS_SHOWN: Final = 2000
STRACE: Final = ("strace", "-f", "-ttt", "-e", "trace=fdatasync,fsync")

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


class BenchFailed(Exception):
    """The measurement could not be made, or what it measured was wrong."""


def die_with_parent() -> None:
    """Between fork and exec of a child: SIGTERM when the bench is gone, however it went."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Part:
    """One process. What it says on stdout is JSON, a line per event; stderr goes to a log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    async def event(self, name: str, within_s: float) -> dict[str, Any]:
        """The next thing it says, which must be `name`. Raises BenchFailed with the end of its log."""
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), within_s)
        except TimeoutError:
            raise self.failed(f"did not say {name!r} within {within_s:g} s") from None
        event = msgspec.json.decode(line) if line else {}
        if event.get("event") != name:
            raise self.failed(f"said {line!r} instead of {name!r}")
        return event

    def check(self) -> None:
        """Raise BenchFailed when it is gone."""
        if self.process.returncode is not None:
            raise self.failed(f"ended with {self.process.returncode}")

    def failed(self, what: str) -> BenchFailed:
        return BenchFailed(f"{self.name} {what}\n{self.said()}")

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-LOG_CHARS_SHOWN:]

    async def stop(self, *, gently: bool) -> None:
        """End it and what it started: `gently` with time to close its files."""
        if self.process.returncode is not None:
            return
        pids = tree(self.pid)
        leader = self._leader(pids)
        with suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM if gently else signal.SIGKILL)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.process.wait()
        # A store that lost its gateway still writes where everything is removed next.
        end_s = monotonic_s() + STOP_S
        while any(_runs(pid) for pid in pids) and monotonic_s() < end_s:
            await sleep(POLL_S)

    def _leader(self, pids: list[int]) -> int:
        # strace passes no signal on to what it traces.
        if len(pids) > 1 and is_strace(self.pid):
            return pids[1]
        return self.pid


def _runs(pid: int) -> bool:
    """Whether it has not ended; one that only its parent has not looked at yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def start(name: str, command: Sequence[str], directory: Path) -> Part:
    """Run `command` from the source tree; its log is `{directory}/{name}.log`.

    What the gateway says on stdout is for people and goes to the log too.
    """
    log = directory / f"{name}.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=errors if name == "gateway" else asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            preexec_fn=die_with_parent,  # one prctl call: nothing that another thread could hold a lock for
            limit=EVENT_BYTES_MAX,
        )
    return Part(name, process, log)


def can_trace() -> bool:
    """Whether strace is installed; whether it may trace shows when it is tried."""
    return shutil.which("strace") is not None


async def strace_filters() -> bool:
    """`--seccomp-bpf` (strace 5.3): only the traced calls stop, all others run at full speed."""
    process = await asyncio.create_subprocess_exec(
        "strace", "-f", "--seccomp-bpf", "-e", "trace=fsync", "true",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait() == 0


def is_strace(pid: int) -> bool:
    """Whether this process is strace."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name == "strace"
    except FileNotFoundError:
        return False
