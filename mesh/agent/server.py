"""`Agent.run`: uvicorn around one agent, the port bound first so that the agent knows its own URL.

uvicorn comes with the extras `agent` and `gateway` and is looked for only here.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from mesh.clock import sleep
from mesh.errors import ConfigError
from mesh.pool import Target

if TYPE_CHECKING:
    from mesh.agent.serve import Agent

logger: Final = logging.getLogger("mesh.agent")

BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75
"""Longer than gateways keep idle connections (mesh/pool), so that they close them and never meet a closed one."""
GC_DEFAULT: Final = (700, 10, 10)
GC_YOUNG_MAX: Final = 5_000
"""What a few dozen requests at once are made of: at CPython's default the search for cycles goes through them several
times while they run, which takes 9 % of the CPU. Who has set another threshold keeps it."""
WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


def run(agent: Agent, host: str, port: int) -> None:
    """Serve until a signal ends it. Raises ConfigError, also for a port in use; SystemExit when refused for good."""
    uvicorn = _uvicorn()
    from mesh.edge.protocol import SWEEP_S, Edge, sweep  # noqa: PLC0415 - needs uvicorn

    _show_log()
    listener = _bound(host, port)
    if agent.url is None:
        agent.url = address(agent, host, listener)
    logger.info("%s serves at %s", agent.endpoint, agent.url)
    config = uvicorn.Config(
        agent,
        log_level="warning",
        access_log=False,
        http=Edge,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        lifespan="on",
        ws="none",
    )
    server = uvicorn.Server(config)
    sweeping: list[asyncio.Task[None]] = []
    shut_down, start_up = server.shutdown, server.startup

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while True:
            await sleep(SWEEP_S)
            sweep(server.server_state.connections.copy(), loop.time())

    async def begin(sockets: list[socket.socket] | None = None) -> None:
        await start_up(sockets)
        _collect_seldom()
        sweeping.append(asyncio.create_task(watch(), name="mesh-edge-sweep"))

    async def leave_first(sockets: list[socket.socket] | None = None) -> None:
        for task in sweeping:
            task.cancel()
        # Gateways stop sending before the listener is closed, not after the last connection is.
        await agent.leave()
        await shut_down(sockets)

    refused: list[str] = []

    def end(why: str) -> None:
        refused.append(why)
        server.should_exit = True

    server.shutdown, server.startup = leave_first, begin
    agent.refused = end
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down and raises the signal again; there is nothing to tell
    finally:
        listener.close()
    if refused:
        # Not 0: a supervisor, or a pipeline that waits for this start, must not take it for a good one.
        raise SystemExit(refused[0])


def _collect_seldom() -> None:
    if gc.get_threshold() == GC_DEFAULT:
        gc.set_threshold(GC_YOUNG_MAX, *GC_DEFAULT[1:])


def _show_log() -> None:
    if not logging.getLogger().handlers:
        # Whoever starts an agent from a terminal wants to see where it is and whether the mesh knows it.
        logging.basicConfig(format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
        logger.setLevel(logging.INFO)


def _bound(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    try:
        return bind(host, port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        message = f"cannot listen on {host}:{port}: {why}; choose another port, or end what uses it"
        raise ConfigError(message) from None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket: what connects from now on waits for the server instead of being refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the method's own signature
    return listener


def address(agent: Agent, host: str, listener: socket.socket) -> str:
    """The agent's URL: the bound host, or for a wildcard this machine's address as seen on the way to the gateway."""
    port: int = listener.getsockname()[1]
    if host in WILDCARDS:
        host = _address_towards(agent.gateways[0])
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{agent.prefix}"


def _address_towards(gateway: Target) -> str:
    try:
        found = socket.getaddrinfo(gateway.host, gateway.port, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])  # a datagram socket: picks the route, sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        message = f"no own address towards {gateway.host} ({error}): give Agent(url=...) or set MESH_AGENT_URL"
        raise ConfigError(message) from error


def _uvicorn() -> Any:
    try:
        return importlib.import_module("uvicorn")
    except ImportError:
        message = (
            "agent.run needs uvicorn, which is not installed: pip install 'agent-mesh[agent]' or pip install uvicorn,"
            " or serve the Agent with any other ASGI server"
        )
        raise ConfigError(message) from None
