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
    """Ask for work until SIGINT or SIGTERM, then drain. Raises ConfigError; SystemExit when refused for good."""
    if not logging.getLogger().handlers:
        # Whoever starts an agent from a terminal wants to see whether the mesh knows it.
        logging.basicConfig(format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
        logger.setLevel(logging.INFO)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        refused = runner.run(_until_asked_to_end(agent))
    if refused:
        raise SystemExit(refused[0])


async def _until_asked_to_end(agent: Agent) -> list[str]:
    """Gives why the registry will not have the agent, if that is what ended it."""
    asked = asyncio.Event()
    refused: list[str] = []

    def end(why: str) -> None:
        refused.append(why)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    agent.refused = end
    agent.begin()
    try:
        await asked.wait()
    finally:
        await agent.end()
    return refused


def _loop_factory() -> Any:
    try:
        return importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
