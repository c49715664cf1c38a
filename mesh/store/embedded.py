"""The embedded store: a store server as our own supervised child on a private directory.

Owns the directory lock and the server's whole life: start, watch, restart, stop. Knows no keys or commands.
One run of the server is child.py, what the files of the directory prove is marker.py.

One thread forks the server, waits for its exit and starts it again. It lives as long as this process does,
because PR_SET_PDEATHSIG fires when the forking *thread* ends; and a blocked waitpid costs nothing while idle.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Final

from mesh.clock import monotonic_s, pause
from mesh.errors import ConfigError, MeshError, StoreUnavailable
from mesh.store.address import Address
from mesh.store.binary import find_server
from mesh.store.child import Child, Run
from mesh.store.marker import Directory, Marker

SOCKET_PATH_BYTES_MAX: Final = 100
"""The kernel allows 107 on Linux, 103 on macOS."""
STOP_S_MAX: Final = 8.0
LOCK_WAIT_S: Final = 1.0
ORPHAN_WAIT_S: Final = 5.0
"""How long the server of a killed gateway may take to notice and to let go of the directory."""
ROOM_BYTES_MIN: Final = 1 << 20
"""With less left, what one turn has to write may not fit."""
RESTART_WINDOW_S: Final = 30.0
RESTART_PAUSE_S_MAX: Final = 5.0

_log = logging.getLogger(__name__)


class EmbeddedStore:
    """`start()`, then the server at `address` is kept running until `stop()`, or until this process is gone.

    `memory_bytes_max` is the server's maxmemory, 0 for none. Also the gate's memory of the store's identity.
    """

    def __init__(self, directory: Path | str, *, memory_bytes_max: int = 0) -> None:
        self.directory = Path(directory).resolve()
        self.restarts = 0
        self.fault: Exception | None = None
        """Why the server does not run although it should; None while it does."""
        self._files = Directory(self.directory)
        self._marker: Marker | None = None
        self._run = Run(Path(), self.directory, Path(), memory_bytes_max)
        self._lock = -1
        self._child: Child | None = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self._boots: deque[float] = deque(maxlen=8)

    @property
    def address(self) -> Address:
        return Address(path=str(self._run.socket))

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._child.pid if self._child is not None else None

    def start(self) -> Address:
        """Start the server and return once it answers. Blocks: 50 ms, longer with much data to load.

        Raises ConfigError (directory in use or not writable, no server) or StoreUnsafe (data that must not be
        opened, or that the server cannot load), one line each, with the mend.
        """
        binary, server = find_server()
        self._files.create()
        self._run = replace(self._run, binary=binary, socket=_socket_path(self.directory))
        self._lock = self._take_lock()
        try:
            self._marker = self._files.check(server)
            self._files.write(self._marker)
            self._stopping.clear()
            started: Future[None] = Future()
            self._keeper = threading.Thread(
                target=self._keep, args=(started,), name="mesh-embedded-store", daemon=True
            )
            self._keeper.start()
            started.result()
        except OSError as fault:
            self.stop()
            raise ConfigError(f"the store directory {self.directory} cannot be used: {fault}") from fault
        except BaseException:
            self.stop()
            raise
        return self.address

    def stop(self) -> None:
        """End the server: gracefully, after STOP_S_MAX by force (nothing acknowledged is lost either way)."""
        self._stopping.set()
        if self._keeper is not None:
            self._signal(signal.SIGTERM)
            self._keeper.join(STOP_S_MAX)
            if self._keeper.is_alive():
                self._signal(signal.SIGKILL)
                self._keeper.join()
            self._keeper = None
        self._release()

    def recall(self) -> str:
        """The identity this directory's data had, "" before it had one (gate.Memory)."""
        return self._marker.incarnation if self._marker else ""

    def remember(self, incarnation: str) -> None:
        """From now on an empty store in this directory is a loss (gate.Memory)."""
        if self._marker is not None and self._marker.incarnation != incarnation:
            self._marker = replace(self._marker, incarnation=incarnation)
            self._files.write(self._marker)

    def trouble(self) -> str:
        """What keeps the server from its work, as far as the disk tells (gate.Memory)."""
        free = shutil.disk_usage(self.directory).free
        if free >= ROOM_BYTES_MIN:
            return ""
        # A write that does not fit ends the server, and what it could not write was not acknowledged.
        return f"the disk that the store is on is full ({free // 1024} KiB free): make room, it goes on by itself"

    # The directory

    def _take_lock(self) -> int:
        """The server inherits this lock, so it lasts as long as either of us.

        Nobody else can open the data, even while the server of a killed gateway writes its last bytes.
        """
        try:
            descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as fault:
            reason = f"the store directory {self.directory} is not writable: {fault.strerror}"
            raise ConfigError(reason) from fault
        begun_s = monotonic_s()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                if monotonic_s() - begun_s > (LOCK_WAIT_S if _alive(holder) else ORPHAN_WAIT_S):
                    os.close(descriptor)
                    raise ConfigError(
                        f"the store directory {self.directory} is in use by process {holder or 'unknown'}."
                        " Stop that gateway, or give this one a directory of its own.",
                        code="directory_in_use",
                    ) from None
                pause(0.02)
            else:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # The keeper thread

    def _keep(self, started: Future[None]) -> None:
        try:
            child: Child | None = self._boot()
        except BaseException as fault:  # noqa: BLE001 - handed to the thread that waits in start()
            started.set_exception(fault)
            return
        started.set_result(None)
        while child is not None:
            ending = child.wait()
            if self._stopping.is_set():
                return
            self.restarts += 1
            self.fault = StoreUnavailable(f"the store server ended ({ending})")
            why = f"{ending}; {trouble}" if (trouble := self.trouble()) else ending
            _log.error("store server %d ended (%s); starting it again", child.process.pid, why)
            child = self._boot_again()

    def _boot_again(self) -> Child | None:
        """A running server, however long that takes; None when we are to stop.

        The pause keeps a server that dies at once (a full disk) from eating the machine, and still finds it
        healed within seconds.
        """
        while not self._stopping.wait(self._restart_pause_s()):
            try:
                child = self._boot()
            except (MeshError, OSError) as fault:
                if str(fault) != str(self.fault):
                    _log.error("store server cannot be started again: %s", fault)
                self.fault = fault
            else:
                self.fault = None
                return child
        return None

    def _restart_pause_s(self) -> float:
        recent = sum(at_s > monotonic_s() - RESTART_WINDOW_S for at_s in self._boots)
        return 0.0 if recent <= 2 else min(0.1 * 2 ** (recent - 2), RESTART_PAUSE_S_MAX)  # noqa: PLR2004

    def _boot(self) -> Child:
        self._boots.append(monotonic_s())
        if self._marker is not None:
            self._files.check_data(self._marker)
        self._child = child = Child(self._run, self._lock)
        child.await_ready(self._stopping)
        return child

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send(number)


def _socket_path(directory: Path) -> Path:
    """`<directory>/s.sock`, or for a deep directory one in a private run directory, always the same one."""
    path = directory / "s.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    run = Path(tempfile.gettempdir()) / f"mesh-{os.getuid()}"
    run.mkdir(mode=0o700, exist_ok=True)
    found = run.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{run} is not a directory private to this user; remove it or set TMPDIR")
    path = run / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(f"neither {directory} nor {run} is short enough for a unix socket; set TMPDIR")
    return path


def _alive(pid: str) -> bool:
    if not re.fullmatch(r"[1-9]\d{0,9}", pid):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and alive
        return True
    return True
