"""One run of the store server process: its settings, its start, and why it did not start.

Knows neither the directory lock nor restarts (embedded.py); sends no command but PING.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.clock import monotonic_s, pause
from mesh.errors import StoreUnavailable, StoreUnsafe
from mesh.store.marker import AOF, MANIFEST

LOG: Final = "store.log"
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
"""A longer log is set aside (one generation) when the server starts."""
READY_POLL_S: Final = 0.003
ACCEPT_S_MAX: Final = 10.0
"""From fork to the first answer, be it LOADING."""
LOAD_S_MAX: Final = 600.0

_EXEC: Final = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]): sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""PR_SET_PDEATHSIG = SIGTERM, then become the server. In a process of its own: running Python between fork
and exec of a threaded gateway can deadlock. The parent may have died before prctl, hence the second look."""


@dataclass(frozen=True, slots=True)
class Run:
    """How to run the server: absolute paths, `memory_bytes_max` 0 for no limit."""

    binary: Path
    directory: Path
    socket: Path
    memory_bytes_max: int

    def arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "logfile": str(self.directory / LOG),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-use-rdb-preamble": "yes",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            # A rewrite takes a core for a while, and at 64 MB came every few seconds under load. This much is read back
            # in 2 s.
            "auto-aof-rewrite-min-size": "192mb",
            "rdbcompression": "no",
            "save": "",
            "maxmemory": str(self.memory_bytes_max),
            "maxmemory-policy": "noeviction",
            # Up to this a sorted set is a list that is searched from its beginning: of 64 operations in flight the one
            # of what a gateway holds took a twelfth of the CPU.
            "zset-max-listpack-entries": "16",
            "hash-max-listpack-value": "1024",
            "hash-max-listpack-entries": "128",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

_MALLOC = "glibc.malloc.tcache_count=2000:glibc.malloc.tcache_max=8192"
"""The wheel's server has no jemalloc; with room in malloc's per-thread cache a transition costs an eighth less CPU."""


class Child:
    """A started server. It keeps `lock` open, so the lock lasts as long as the server does."""

    def __init__(self, run: Run, lock: int) -> None:
        self._run = run
        run.socket.unlink(missing_ok=True)
        log = run.directory / LOG
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        self._told = log.stat().st_size if log.exists() else 0
        command = [str(run.binary), *run.arguments()]
        if sys.platform == "linux" and sys.executable:
            command = [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *command]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - a fixed argument list
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
                umask=0o077,
                cwd=run.directory,
                env={**os.environ, "GLIBC_TUNABLES": _MALLOC},
            )
        finally:
            os.close(output)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process.returncode is None else None

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self) -> str:
        """Block until the server has ended; how it did, in words."""
        return _ending(self.process.wait())

    def await_ready(self, stopping: threading.Event) -> None:
        """Return once the server answers, or once `stopping` is set and the server was told to end.

        Raises StoreUnsafe (it ended: the last thing it said, with the mend) or StoreUnavailable (it hangs).
        """
        begun_s = monotonic_s()
        loading = False
        while self.process.poll() is None:
            if stopping.is_set():
                self.send(signal.SIGTERM)
                return
            reply = _ping(self._run.socket)
            if reply.startswith(b"+PONG"):
                return
            loading = loading or reply.startswith(b"-LOADING")
            if monotonic_s() - begun_s > (LOAD_S_MAX if loading else ACCEPT_S_MAX):
                self.send(signal.SIGKILL)
                self.process.wait()
                raise StoreUnavailable(f"the store server does not answer; see {self._run.directory / LOG}")
            pause(READY_POLL_S)
        raise self._refused_to_start(self.process.returncode)

    def _refused_to_start(self, code: int) -> StoreUnsafe:
        directory = self._run.directory
        with (directory / LOG).open("rb") as log:
            log.seek(self._told)
            lines = log.read(LOG_BYTES_MAX).decode(errors="replace").splitlines()
        loud = [line.partition(" # ")[2] for line in lines if " # " in line and "overcommit" not in line]
        last = next((line.strip() for line in reversed(loud or lines) if line.strip()), _ending(code))
        mend = f"See {directory / LOG}."
        if "Bad file format" in last:
            parts = sorted((directory / AOF).glob("*.incr.aof"), key=lambda part: part.stat().st_mtime)
            mend = (
                "Restore the directory from a backup; or copy it and cut the newest file off at the damage,"
                " which loses all that came after:"
                f" bash -c 'exec -a valkey-check-aof {self._run.binary} --fix"
                f" {parts[-1] if parts else directory / MANIFEST}'."
            )
        elif "AOF" in last:
            mend = f"Restore {directory / AOF} from a backup."
        return StoreUnsafe(f"the store server cannot open {directory}: {last}.", mend=mend)


def _ping(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64)
        except OSError:
            return b""


def _ending(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
