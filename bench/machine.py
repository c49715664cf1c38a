"""Where the figures were measured: what a reader needs to compare them with others."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from mesh.clock import monotonic_s
from mesh.store.binary import find_server

SYNCS: Final = 200
BLOCK: Final = b"x" * 512
PACKAGES: Final = ("uvloop", "httptools", "uvicorn", "hiredis", "msgspec", "nexus-rpc")


def describe(parent: Path) -> dict[str, Any]:
    """Machine, versions, and what one fdatasync costs where the data will lie."""
    server = find_server()[1]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "store": f"{server.flavor} {server.version}",
        "packages": {name: version(name) for name in PACKAGES},
        "file_system": _file_system(parent),
        "fdatasync_p50_us": round(_fdatasync_us(parent)),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(parent: Path) -> str:
    told = subprocess.run(["stat", "-f", "-c", "%T", str(parent)], capture_output=True, text=True, check=False)  # noqa: S607
    return told.stdout.strip() or "unknown"


def _fdatasync_us(parent: Path) -> float:
    """Of appending 512 bytes to a file."""
    file = parent / f"mesh-bench-sync-{os.getpid()}"
    taken_s: list[float] = []
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(SYNCS):
            os.write(descriptor, BLOCK)
            begun_s = monotonic_s()
            os.fdatasync(descriptor)
            taken_s.append(monotonic_s() - begun_s)
    finally:
        os.close(descriptor)
        file.unlink()
    return median(taken_s) * 1e6
