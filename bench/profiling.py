"""Where the gateway's time goes during a load: py-spy where it is installed, else cProfile inside the gateway.

py-spy samples from outside and slows nothing; cProfile about halves the rates and favours few big functions over many
small ones. Either writes the functions with the most time of their own.
"""

from __future__ import annotations

import asyncio
import os
import pstats
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from bench.profiled import FILE
from mesh.clock import sleep

RATE_PER_S: Final = 200
SHOWN: Final = 40
WRITTEN_S: Final = 20.0
POLL_S: Final = 0.02
MAIN_THREAD: Final = "MainThread"
ROOT_PARTS: Final = 3
"""Parts of a path that tell a function's file."""


class Profile:
    """One profile of one scenario: `{directory}/{scenario}.txt`, and the raw samples beside it."""

    def __init__(self, directory: str, scenario: str) -> None:
        self._text = Path(directory) / f"{scenario}.txt"
        self._spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
        self._raw = self._text.with_suffix(".folded" if self._spy else ".pstats")
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._text.parent.mkdir(parents=True, exist_ok=True)
        self._raw.unlink(missing_ok=True)
        if not self._spy:
            os.environ[FILE] = str(self._raw.resolve())

    @property
    def needs_wrapper(self) -> bool:
        """The gateway must run under bench.profiled."""
        return self._spy is None

    def begin(self, pid: int, seconds: float) -> None:
        """Profile the gateway `pid` from now on, for `seconds` or until `end`."""
        self._pid = pid
        if self._spy is None:
            os.kill(pid, signal.SIGUSR1)
            return
        command = [self._spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
        command += ["--rate", str(RATE_PER_S), "--threads", "--format", "raw", "--output", str(self._raw)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def end(self) -> None:
        """Write the table."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        else:
            os.kill(self._pid, signal.SIGUSR2)
        for _ in range(round(WRITTEN_S / POLL_S)):
            if self._raw.exists():
                break
            await sleep(POLL_S)
        rows = _folded(self._raw) if self._spy else _cprofile(self._raw)
        how = f"py-spy, {RATE_PER_S} samples/s" if self._spy else "cProfile"
        lines = [f"{share:6.1%}  {calls:>9}  {function}" for share, calls, function in rows[:SHOWN]]
        self._text.write_text(f"# the gateway's own time by function; {how}\n" + "\n".join(lines) + "\n")


def _folded(raw: Path) -> list[tuple[float, str, str]]:
    """`thread;a (file:line);b (file:line) samples`: the last one is where the time went."""
    own: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        if MAIN_THREAD not in stack.partition(";")[0]:
            continue  # the thread that waits for the store server's end looks busy to py-spy
        leaf = stack.rpartition(";")[2]
        name, _, place = leaf.partition(" (")
        own[f"{_short(place.rstrip(')').rpartition(':')[0])}:{name}"] += int(samples)
    total = own.total() or 1
    return [(samples / total, "", function) for function, samples in own.most_common()]


def _cprofile(raw: Path) -> list[tuple[float, str, str]]:
    stats = pstats.Stats(str(raw)).stats  # pyright: ignore[reportAttributeAccessIssue]
    # Waiting for events is not work.
    rows = [(own_s, calls, key) for key, (_, calls, own_s, _, _) in stats.items() if "poll" not in key[2]]
    total = sum(own_s for own_s, _, _ in rows) or 1
    return [
        (own_s / total, str(calls), f"{_short(file)}:{line} {name}")
        for own_s, calls, (file, line, name) in sorted(rows, reverse=True)
    ]


def _short(file: str) -> str:
    return "/".join(file.split("/")[-ROOT_PARTS:])
