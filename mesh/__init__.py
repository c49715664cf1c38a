"""Durable RPC between agents: what an agent's or a caller's author types.

An agent, in five lines:

    import mesh
    async def greet(name: str) -> str:
        return f"Hello, {name}!"
    if __name__ == "__main__":
        mesh.serve("greeter", [greet])

A call, in three:

    import mesh
    with mesh.SyncClient() as client:
        print(client.call("greeter", "greeter", "greet", "Ada"))

Names are loaded when they are first used, so that a caller pays for no agent and an agent for no caller.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mesh.agent import Agent, Context, complete, current
    from mesh.agent.serve import serve
    from mesh.client import (
        Client,
        Event,
        GatewayUnreachable,
        OperationCanceled,
        OperationFailed,
        OperationHandle,
        OperationTimedOut,
        OperationUnsuccessful,
        StillRunning,
        SyncClient,
    )
    from mesh.errors import MeshError, Refusal, Unavailable

__all__ = [
    "Agent",
    "Client",
    "Context",
    "Event",
    "GatewayUnreachable",
    "MeshError",
    "OperationCanceled",
    "OperationFailed",
    "OperationHandle",
    "OperationTimedOut",
    "OperationUnsuccessful",
    "Refusal",
    "StillRunning",
    "SyncClient",
    "Unavailable",
    "complete",
    "current",
    "serve",
]

_ROOMS: Final = {
    **dict.fromkeys(("Agent", "Context", "complete", "current"), "mesh.agent"),
    "serve": "mesh.agent.serve",
    **dict.fromkeys(("MeshError", "Refusal", "Unavailable"), "mesh.errors"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module 'mesh' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(_ROOMS.get(name, "mesh.client")), name)
    return value


def __dir__() -> list[str]:
    return __all__
