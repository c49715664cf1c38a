"""`Agent.run` in pull mode: an event loop that lasts until a signal, for an agent that nobody has to reach."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mesh.agent.serve import Agent

logger: Final = logging.getLogger("mesh.agent")


def work(agent: Agent) -> None:
    """Ask for work until SIGINT or SIGTERM, then drain. Raises ConfigError."""
    if not logging.getLogger().handlers:
        # Whoever starts an agent from a terminal wants to see whether the mesh knows it.
        logging.basicConfig(format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
        logger.setLevel(logging.INFO)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_asked_to_end(agent))


async def _until_asked_to_end(agent: Agent) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    agent.begin()
    try:
        await asked.wait()
    finally:
        await agent.end()


def _loop_factory() -> Any:
    try:
        return importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
