"""`python -m bench`: what Mesh does on this machine, beside its targets. Linux; `make bench` calls it.

    work.py       the unit of work: what is sent and what must come back
    agent.py      the handler's process          receiver.py  the callback receiver's process
    generator.py  the load: plain sockets        wrk.py       the load: wrk, if installed and asked for
    process.py    one process                    parts.py     all processes of one run
    meters.py     /proc, the store's counters    load.py      one load, metered
    calls.py      scenarios of calls             standing.py  parked operations, cold start
    traffic.py    limits, a flood      crowd.py     who floods, and two gateways
    durable.py    steps, replays, sleepers       durable_handlers.py  the handlers that have them
    batch.py      ten thousand starts in one request
    payload.py    one large payload              payload_agent.py     the handler that gives it back
    figures.py    values, units, targets         report.py    table and JSON
    machine.py    where it was measured
    instructions.py  instructions of one process per call, by valgrind: a program of its own
    profiling.py  where the gateway's time goes  profiled.py  the gateway under cProfile

A run fails (status 1) when any answer was wrong; a target missed is shown, not failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from bench import batch, calls, durable, payload, report, standing, traffic, wrk
from bench.figures import Figures, compare
from bench.load import Options
from bench.machine import describe
from bench.process import BenchFailed
from mesh.clock import monotonic_s, now_ms, to_rfc3339
from mesh.errors import MeshError

SCENARIOS: Final = (*calls.KINDS, *durable.KINDS, *payload.KINDS, *traffic.KINDS, *batch.KINDS, "parked", "cold_start")
QUICK: Final = {"seconds": 2.0, "repeats": 1, "parked": 2_000, "payload_mib": 96, "warmup": 1.0, "idle": 3.0}
BUSY_LOAD: Final = 0.5
CONSOLE_COLUMNS_MIN: Final = 140


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises SystemExit."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Mesh on this machine.")
    parser.add_argument("--json", metavar="PATH", help="write the figures there; - for stdout (the table: stderr)")
    parser.add_argument("--seconds", type=float, help="length of a load's window (10)")
    parser.add_argument("--repeats", type=int, help="repeats on fresh data; medians are shown (3)")
    parser.add_argument("--only", metavar="NAME,...", help=f"scenarios: {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="a look in under a minute: 2 s, once, 2,000 parked")
    parser.add_argument("--warmup", type=float, help="seconds of load before the window (2)")
    parser.add_argument("--idle", type=float, help="seconds that idle CPU is measured for (10)")
    parser.add_argument("--parked", type=int, help="operations to park (100000)")
    parser.add_argument("--payload-mib", type=int, help="size of the large payload (1024)")
    parser.add_argument("--concurrency", type=int, default=64, help="callers at once (64)")
    parser.add_argument("--generator", choices=("plain", "wrk"), default="plain", help="wrk: synchronous calls only")
    parser.add_argument("--pin", action="store_true", help="the gateway on the first core, all else on the last")
    parser.add_argument("--dir", metavar="DIR", default=tempfile.gettempdir(), help="where the data lies meanwhile")
    parser.add_argument("--profile", metavar="DIR", default="", help="profile the gateway; its top functions go there")
    chosen = parser.parse_args(arguments)
    defaults = {"seconds": 10.0, "repeats": 3, "parked": 100_000, "payload_mib": 1_024, "warmup": 2.0, "idle": 10.0}
    for name, value in (QUICK if chosen.quick else defaults).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    chosen.scenarios = chosen.only.split(",") if chosen.only else list(SCENARIOS)
    unknown = [name for name in chosen.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if chosen.generator == "wrk" and not wrk.installed():
        parser.error("wrk is not installed; the default generator needs nothing")
    if sys.platform != "linux":
        parser.error("the meters read /proc: this runs on Linux only")
    return chosen


def options_of(chosen: argparse.Namespace) -> Options:
    """Options of the scenarios."""
    return Options(
        seconds=chosen.seconds,
        warmup_s=chosen.warmup,
        alone_s=min(4.0, chosen.seconds),
        trace_s=min(3.0, chosen.seconds),
        idle_s=chosen.idle,
        repeats=chosen.repeats,
        concurrency=chosen.concurrency,
        parked=chosen.parked,
        payload_mib=chosen.payload_mib,
        generator=chosen.generator,
        pinned=chosen.pin,
        parent=str(Path(chosen.dir).resolve()),
        profile=chosen.profile,
    )


async def measure(name: str, options: Options) -> Figures:
    """One scenario; what went wrong is in its `errors`."""
    try:
        if name == "parked":
            return await standing.measure_parked(options)
        if name == "cold_start":
            return await standing.measure_cold_start(options)
        for room in (traffic, durable, batch):
            if name in room.KINDS:
                return await room.measure(name, options)
        if name in payload.KINDS:
            return await payload.measure(options)
        return await calls.measure(name, options)
    except (BenchFailed, MeshError, OSError) as error:
        figures = Figures(name)
        figures.errors.append(f"{type(error).__name__}: {error}")
        return figures


async def run(chosen: argparse.Namespace) -> int:
    """All scenarios; the exit status."""
    console = Console(stderr=chosen.json == "-", highlight=False)
    if not console.is_terminal:
        console = Console(stderr=chosen.json == "-", highlight=False, width=CONSOLE_COLUMNS_MIN)
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    options = options_of(chosen)
    started_at, begun_s = to_rfc3339(now_ms()), monotonic_s()
    machine = describe(Path(options.parent))
    console.print(
        f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {machine['store']}; data on"
        f" {machine['file_system']}, fdatasync {machine['fdatasync_p50_us']} us; generator {options.generator}"
        f"{', pinned' if options.pinned else ''}, {options.concurrency} callers;"
        f" {options.repeats} x {options.seconds:g} s\n"
    )
    if os.getloadavg()[0] > BUSY_LOAD:
        console.print(
            f"[yellow]The machine is busy (load {os.getloadavg()[0]:.1f}): trust CPU per operation, not rates.[/]\n"
        )
    scenarios: list[Figures] = []
    for name in chosen.scenarios:
        scenarios.append(await measure(name, options))
        if name == "pull_sync":
            pushed = next((one for one in scenarios if one.scenario == "nexus_sync"), None)
            if pushed is not None:
                compare(pushed, scenarios[-1])
        report.show(console, scenarios[-1])
    document = report.to_json(scenarios, options, machine, started_at, monotonic_s() - begun_s)
    if chosen.json:
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        if chosen.json == "-":
            sys.stdout.buffer.write(text + b"\n")
        else:
            await asyncio.to_thread(Path(chosen.json).write_bytes, text + b"\n")
    if document["misses"]:
        console.print(f"[bold red]Targets missed:[/] {', '.join(document['misses'])}")
    return 0 if document["ok"] else 1


def main() -> None:
    """Measure and exit."""
    chosen = parse(sys.argv[1:])
    try:
        status = asyncio.run(run(chosen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
