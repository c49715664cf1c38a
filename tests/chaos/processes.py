"""Real processes on a leash: started, killed, frozen and started again by the harness; gone when the tests are gone.

Knows nothing of what they do. A process that is started again is a new generation: `worker-a.2`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mesh.clock import monotonic_s, pause
from tests.ports import lasting_port

ROOT = Path(__file__).parents[2]
_LEASH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]): sys.exit(0)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""PR_SET_PDEATHSIG = SIGKILL, then become the program: a killed test run leaves nothing behind."""

Command = Callable[[str], Sequence[str]]
"""The command line for a generation's name."""


class Process:
    """One supervised process. `log` collects the output of all generations."""

    def __init__(self, name: str, command: Command, directory: Path) -> None:
        self.name = name
        self.generation = 0
        self.log = directory / f"{name}.log"
        self._command = command
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def title(self) -> str:
        """Name and generation, as histories show them."""
        return f"{self.name}.{self.generation}"

    @property
    def pid(self) -> int:
        assert self._running is not None, f"{self.name} was never started"
        return self._running.pid

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def start(self) -> None:
        """The next generation."""
        assert not self.alive, f"{self.name} runs already"
        self.generation += 1
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
        with self.log.open("ab") as log:
            log.write(f"--- {self.title}\n".encode())
            log.flush()
            self._running = subprocess.Popen(
                [*leash, *self._command(self.title)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    def kill(self) -> bool:
        """SIGKILL, and wait for the end; whether the signal is what ended it."""
        if self._running is None:
            return False
        self._running.send_signal(signal.SIGKILL)
        return self._running.wait() == -signal.SIGKILL

    def terminate(self) -> int:
        """SIGTERM; the exit status, -9 if it took longer than 15 s."""
        assert self._running is not None
        self._running.send_signal(signal.SIGTERM)
        try:
            return self._running.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def freeze(self) -> bool:
        """SIGSTOP; whether the kernel says that it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        end_s = monotonic_s() + 1
        while self._state() != "T" and monotonic_s() < end_s:
            pause(0.002)
        return self._state() == "T"

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def tail(self, lines: int = 30) -> str:
        """The end of the log, for a report."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def child_of(pid: int, program: str) -> int | None:
    """The child of `pid` that runs `program`, whichever thread of it forked."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            if program in Path(f"/proc/{child}/cmdline").read_text().partition("\0")[0]:
                return int(child)
    return None


def ended(pid: int) -> bool:
    """The process is gone, or waits for its parent to read its exit status."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, and that differ."""
    return [lasting_port() for _ in range(count)]
