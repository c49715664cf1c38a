"""`python -m bench.instructions SCENARIO`: instructions per call of one process, counted by valgrind.

For comparing two commits, never for a target. With one caller, the default, runs of one commit differ by a
thousandth, on a busy machine too. With more they differ by a fifth: how many calls share a turn of the loop, and with
it a write to the store, depends on time, and the counted process runs some fifty times slower than alone.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.parts import READY_S, Stack
from bench.process import BenchFailed
from bench.work import Surface, key_of, new_tag, surface_of
from mesh.errors import MeshError
from mesh.pool import Pool, Target

WARM_CALLS: Final = 600
SCENARIOS: Final = {"nexus_sync": "nexus", "v1_sync": "v1", "pull_sync": "nexus"}
"""As bench.calls has them, and their surfaces."""
_TOTAL: Final = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class Counted(Stack):
    """A stack of which one part runs under callgrind."""

    def __init__(self, parent: Path, part: str, out: Path) -> None:
        super().__init__(parent)
        self._counted = part
        self._out = out

    async def _spawn(self, name: str, command: Any) -> Any:
        if name == self._counted:
            if name == "gateway":
                command = [sys.executable, *command]
            command = [
                "valgrind", "--tool=callgrind", "--dump-instr=no", f"--callgrind-out-file={self._out}", *command,
            ]  # fmt: skip
        return await super()._spawn(name, command)

    async def control(self, *arguments: str) -> None:
        """callgrind_control on the counted part. Raises BenchFailed."""
        process = await asyncio.create_subprocess_exec(
            "callgrind_control", *arguments, str(self.parts[self._counted].pid),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if await process.wait():
            raise BenchFailed(f"callgrind_control {' '.join(arguments)} failed")


async def calls(pool: Pool, url: str, surface: Surface, count: int, concurrency: int) -> None:
    """`count` checked calls. Raises MeshError."""
    tag, numbers, target = new_tag(), iter(range(count)), Target.parse(url)

    async def caller() -> None:
        for number in numbers:
            key = key_of(tag, number)
            headers, body = surface.request(key)
            surface.check(key, await pool.post(target, surface.path, headers, body, timeout_s=READY_S))

    await asyncio.gather(*(caller() for _ in range(concurrency)))


async def count(scenario: str, part: str, concurrency: int, number: int, out: Path) -> float:
    """Instructions per call of `part`; the profile of the counted calls is left in `out`."""
    surface = surface_of(SCENARIOS[scenario], operation="echo")
    pool = Pool(max_per_host=concurrency)
    dump = out.with_name(out.name + ".1")
    try:
        async with Counted(Path(tempfile.gettempdir()), part, out) as stack:
            await stack.gateway()
            await stack.agent(pulls=scenario == "pull_sync")
            await calls(pool, stack.url, surface, WARM_CALLS, concurrency)
            await stack.control("-z")
            await calls(pool, stack.url, surface, number, concurrency)
            await stack.control("-d")
            found = _TOTAL.search(await asyncio.to_thread(dump.read_text))
    finally:
        await pool.close()
    if found is None:
        raise BenchFailed(f"{dump} has no total")
    return int(found[1]) / number


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--part", choices=("gateway", "agent"), default="gateway")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--out", type=Path, help="keep the profile there, for callgrind_annotate")
    chosen = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed")
    out = (chosen.out or Path(tempfile.mkdtemp(prefix="mesh-instructions-")) / "profile").resolve()
    try:
        figure = asyncio.run(count(chosen.scenario, chosen.part, chosen.concurrency, chosen.calls, out))
    except (BenchFailed, MeshError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{chosen.scenario} {chosen.part}, {chosen.concurrency} callers: {figure:,.0f} instructions a call")
    print(f"callgrind_annotate {out}.1")


if __name__ == "__main__":
    main()
