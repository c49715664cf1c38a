"""The agent side of the SDK: host nexusrpc handlers, register them, complete what takes long.

serve.py         Agent: the ASGI app                      routes.py      which handler a path means
host.py          which request gets which answer          inbound.py     a request's head
work.py          the handlers' tasks and their ends       outcome.py     how a call ended, as an answer
runs.py          executions and their memory              codec.py       values and bytes
completion.py    outcomes on their way out, complete()    context.py     current()
leases.py        heartbeats for long work                 server.py      uvicorn around an Agent
hosting.py       durable runs, given their tasks          durable/       handlers with a journal
registration.py  the agent's entry in the registry      arrivals.py    large inputs
waiting.py       requests that wait for a run's end

pulling.py       pull mode, put together                  worker.py      its event loop
puller.py        lanes to the gateways                    tasks.py       frames: tasks in, answers out
fetched.py       runs of tasks that were fetched          outbox.py      answers on their way
booking.py       answers by their own routes
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mesh.agent.completion import complete
    from mesh.agent.context import Call, current
    from mesh.agent.serve import Agent

__all__ = ["Agent", "Call", "complete", "current"]

_ROOMS: Final = {
    "Agent": "mesh.agent.serve",
    "Call": "mesh.agent.context",
    "complete": "mesh.agent.completion",
    "current": "mesh.agent.context",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: the caller client shares codec.py and needs nothing else from here.
    if name not in _ROOMS:
        message = f"module 'mesh.agent' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value
