"""Runs one gateway process: socket, embedded store if there is one, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from gateway.app import Mesh, create_app
from mesh.clock import sleep
from mesh.edge.protocol import SWEEP_S, Edge, sweep
from mesh.errors import ConfigError
from mesh.store.address import Address
from mesh.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from gateway.settings import Settings
    from mesh.store.identity import Memory

BACKLOG = 2048
KEEP_ALIVE_S = 75
GC_THRESHOLDS = (20_000, 20, 50)
"""Requests make no cycles worth 7 % of the CPU to look for at the default of 700 allocations."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's ground. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as fault:
        found.close()
        detail = f"cannot listen on {host}:{port}: {fault.strerror}; choose another --port, or end what uses it"
        raise ConfigError(detail) from None
    return found


class _Server(uvicorn.Server):
    """uvicorn, telling the mesh at once that the process was asked to end."""

    def __init__(self, config: uvicorn.Config, mesh: Mesh, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._mesh = mesh
        self._ready = ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._mesh.drain()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._sweeper = asyncio.create_task(self._sweep(), name="mesh-edge-sweep")
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._sweeper.cancel()
        await super().shutdown(sockets)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await sleep(SWEEP_S)
            sweep(self.server_state.connections.copy(), loop.time())


def run(
    settings: Settings,
    address: Address,
    listener: socket.socket,
    *,
    memory: Memory | None = None,
    exclusive: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; `settings.gateway.public_url` is final.

    Raises StoreUnsafe, StoreUnavailable, ConfigError: whatever kept it from starting.
    """
    mesh = Mesh(settings, address, memory=memory, exclusive=exclusive)
    config = uvicorn.Config(
        create_app(mesh),
        http=Edge,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.gateway.drain_s)),
    )
    server = _Server(config, mesh, ready)
    asked: list[int] = []

    async def serve() -> None:
        try:
            await mesh.start()
            if not asked:
                await server.serve(sockets=[listener])
        finally:
            await mesh.stop()

    # Until uvicorn takes signals over they are noted, for nothing has to be drained yet. When it is done, it raises the
    # one that ended it once more; the mesh has still to leave in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked.append(number))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def dev(settings: Settings, directory: Path, *, ready: Callable[[], None] = lambda: None) -> None:
    """`mesh dev`: gateway and embedded store in one process tree. Raises ConfigError, StoreUnsafe.

    The store may fill half of the memory; then starts are refused (503) and what is kept goes on.
    """
    listener = bind(settings.gateway.host, settings.gateway.port)
    store = EmbeddedStore(directory, memory_bytes_max=_memory_bytes() // 2)
    try:
        address = store.start()
        try:
            settings = with_port(settings, listener).keeping_blobs(directory / "blobs")
            run(settings, address, listener, memory=store, exclusive=True, ready=ready)
        finally:
            store.stop()
    finally:
        listener.close()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def serve(settings: Settings, *, ready: Callable[[], None] = lambda: None) -> None:
    """`mesh serve`: a gateway against a given store. Raises ConfigError, StoreUnsafe, StoreUnavailable."""
    address = Address.parse(settings.store.url)
    listener = bind(settings.gateway.host, settings.gateway.port)
    run(with_port(settings, listener), address, listener, memory=settings.memory(), ready=ready)


def with_port(settings: Settings, listener: socket.socket) -> Settings:
    """Port 0 means any: the bound one goes into the settings and, unless it was given, into the public URL."""
    host, port = listener.getsockname()[:2]
    return settings.bound(host, port)
