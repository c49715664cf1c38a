"""The demo's processes: started, killed, started again, and all gone at the end. Knows nothing of what they do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

from mesh.clock import monotonic_s, pause
from mesh.ids import pick_index

STOP_S_MAX: Final = 6.0
LOG_LINES_SHOWN: Final = 12
POLL_S: Final = 0.02
LOWEST_PORT: Final = 20_000
PORT_TRIES_MAX: Final = 20
_SYSTEM_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")

_LEASH: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""PR_SET_PDEATHSIG, then become the program: what a killed demo has started does not outlive it (Linux)."""


class Process:
    """A Python module run as a process of its own, again and again with the same arguments."""

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """`arguments`: what stands behind `python`; `env` is added to this process's environment."""
        self.name = name
        self.log = log
        self._arguments = list(arguments)
        self._env = {**os.environ, **env}
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._running
        return running.pid if running is not None and running.poll() is None else None

    def start(self) -> None:
        """Start it; it logs to `log`."""
        leash = [sys.executable, "-c", _LEASH, str(os.getpid())] if sys.platform == "linux" else [sys.executable]
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                [*leash, *self._arguments],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which ends its processes in order
            )

    def kill(self) -> int:
        """`kill -9`, this process alone; its process id."""
        running = self._running
        if running is None:
            message = f"{self.name} does not run"
            raise RuntimeError(message)
        running.kill()
        running.wait()
        return running.pid

    def wait(self) -> None:
        """Until it has ended."""
        if self._running is not None:
            self._running.wait()

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and all that it started, while it runs: later its number may be somebody else's."""
        if self._running is not None and self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._running.pid, number)

    def tail(self) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


class Fleet:
    """All processes of the demo; leaving the `with` block ends every one of them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """A new process; its log is `{name}.log`."""
        process = Process(name, arguments, env or {}, self._logs / f"{name}.log")
        self.processes.append(process)
        process.start()
        return process

    def stop(self) -> None:
        """End all: what came last first, by SIGTERM, what does not listen by SIGKILL, with all they started."""
        for process in reversed(self.processes):
            process.signal_group(signal.SIGTERM)
        until_s = monotonic_s() + STOP_S_MAX
        while any(process.pid is not None for process in self.processes) and monotonic_s() < until_s:
            pause(POLL_S)
        for process in self.processes:
            process.signal_group(signal.SIGKILL)
            process.wait()

    def fallen(self) -> list[Process]:
        """Those that have ended although nobody killed them."""
        return [process for process in self.processes if process.pid is None]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody has, all different.

    Below those that the system gives out by itself, where it says which: else it may give one to somebody else while
    the process that is told it starts.
    """
    with ExitStack() as held:
        return [_held(held) for _ in range(count)]


def _held(held: ExitStack) -> int:
    own = int(_SYSTEM_PORTS.read_text().split()[0]) if _SYSTEM_PORTS.exists() else 0
    for _ in range(PORT_TRIES_MAX):
        port = LOWEST_PORT + pick_index(own - LOWEST_PORT) if own > LOWEST_PORT else 0
        with suppress(OSError):
            return held.enter_context(socket.create_server(("127.0.0.1", port))).getsockname()[1]
    return held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
