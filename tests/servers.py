"""Real store servers for tests, with any settings, and two instruments: a bounded wait, a cutting proxy."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mesh.clock import monotonic_s, pause, sleep
from mesh.store.address import Address
from mesh.store.binary import find_server
from mesh.store.link import Link

SAFE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}


async def eventually(check: Callable[[], object], within_s: float = 30.0) -> None:
    """Poll until `check()` is true; fail the test when it never is."""
    end_s = monotonic_s() + within_s
    while not check():
        assert monotonic_s() < end_s, f"never came true: {check}"
        await sleep(0.005)


def eventually_sync(check: Callable[[], object], within_s: float = 30.0) -> None:
    end_s = monotonic_s() + within_s
    while not check():
        assert monotonic_s() < end_s, f"never came true: {check}"
        pause(0.005)


@asynccontextmanager
async def connected(address: Address, **options: Any) -> AsyncIterator[Link]:
    """A link of your own, closed at the end."""
    link = Link(address, **options)
    await link.connect()
    try:
        yield link
    finally:
        await link.close()


async def ask(address: Address, *commands: tuple[Any, ...]) -> list[Any]:
    """The replies of a few commands over a link that is closed again."""
    async with connected(address) as link:
        return await asyncio.gather(*[link.call(*command) for command in commands])


def ended(pid: int) -> bool:
    """The process is gone, or waits for init to read its exit status."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True


class RawServer:
    """A server process on a unix socket with these settings, unsupervised, so that a test may break it."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.directory = directory
        self.address = Address(path=str(directory / "s.sock"))
        self._settings = settings
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        binary, _ = find_server()
        settings = {
            "port": "0",
            "dir": str(self.directory),
            "logfile": "raw.log",
            "unixsocket": self.address.path,
        }
        words = [word for name, value in (settings | self._settings).items() for word in (f"--{name}", value)]
        # Python ignores SIGXFSZ; handed on, a file size limit becomes a write error instead of a death.
        return subprocess.Popen([binary, *words], cwd=self.directory, start_new_session=True, restore_signals=False)

    def wait_ready(self) -> None:
        eventually_sync(lambda: self.ask("PING").startswith((b"+PONG", b"-NOAUTH")))

    def ask(self, line: str) -> bytes:
        """One inline command on a connection of its own; b"" when the server does not take it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            try:
                connection.connect(self.address.path)
                connection.sendall(line.encode() + b"\r\n")
                return connection.recv(65536)
            except OSError:
                return b""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = self._spawn()


class Proxy:
    """Between a link and the store: records what the link sends, can hold replies back and cut the line."""

    def __init__(self, upstream: Address, path: Path) -> None:
        self.address = Address(path=str(path))
        self.chunks: list[bytes] = []
        self.replies_flow = asyncio.Event()
        self.replies_flow.set()
        self._upstream = upstream
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Proxy:
        self._server = await asyncio.start_unix_server(self._accept, self.address.path)
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream.path)
        self._writers += [writer, up_writer]
        for pump in (self._pump(reader, up_writer, self._seen), self._pump(up_reader, writer, self._held)):
            task = asyncio.ensure_future(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: Callable[[bytes], Awaitable[object]],
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1024 * 1024):
                await gate(chunk)
                writer.write(chunk)
        writer.close()

    async def _seen(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    async def _held(self, chunk: bytes) -> None:
        await self.replies_flow.wait()

    def cut(self) -> None:
        for writer in self._writers:
            # A TLS transport of CPython 3.11.2 that is closed already cannot be aborted.
            with suppress(AttributeError):
                writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in [*self._pumps]:
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
