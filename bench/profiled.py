"""`python -m bench.profiled ARGS`: the `mesh` command with cProfile at hand, for Profile in bench/profiling.py.

SIGUSR1 starts profiling, SIGUSR2 ends it and writes the statistics to the file that MESH_BENCH_PROFILE names. The main
thread only, which is where the gateway's event loop runs.
"""

from __future__ import annotations

import cProfile
import os
import signal
from types import FrameType

from gateway.cli.main import main

FILE = "MESH_BENCH_PROFILE"


def run() -> None:
    """Install the signals, be `mesh`."""
    profile = cProfile.Profile()

    def begin(_number: int, _frame: FrameType | None) -> None:
        profile.enable()

    def end(_number: int, _frame: FrameType | None) -> None:
        profile.disable()
        draft = f"{os.environ[FILE]}.new"
        profile.dump_stats(draft)
        os.replace(draft, os.environ[FILE])  # noqa: PTH105 - whoever waits for the file sees all of it

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    main()


if __name__ == "__main__":
    run()
