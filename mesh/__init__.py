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
    from mesh.agent import Agent, Call, complete, current
    from mesh.agent.durable import (
        CallRefused,
        CancelRequested,
        Context,
        Gathered,
        JournalMismatch,
        LeaseLost,
        QuorumMissed,
        Retry,
        StepFailed,
        StepTimedOut,
        Suspended,
        SyncContext,
        durable,
    )
    from mesh.agent.serve import pull, serve
    from mesh.blob import Blob
    from mesh.client import (
        Chunk,
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
    "Blob",
    "Call",
    "CallRefused",
    "CancelRequested",
    "Chunk",
    "Client",
    "Context",
    "Event",
    "GatewayUnreachable",
    "Gathered",
    "JournalMismatch",
    "LeaseLost",
    "MeshError",
    "OperationCanceled",
    "OperationFailed",
    "OperationHandle",
    "OperationTimedOut",
    "OperationUnsuccessful",
    "QuorumMissed",
    "Refusal",
    "Retry",
    "StepFailed",
    "StepTimedOut",
    "StillRunning",
    "Suspended",
    "SyncClient",
    "SyncContext",
    "Unavailable",
    "complete",
    "current",
    "durable",
    "pull",
    "serve",
]

_ROOMS: Final = {
    **dict.fromkeys(("Agent", "Call", "complete", "current"), "mesh.agent"),
    **dict.fromkeys(("CallRefused", "CancelRequested", "Context", "Gathered", "JournalMismatch"), "mesh.agent.durable"),
    **dict.fromkeys(("LeaseLost", "QuorumMissed", "Retry", "StepFailed", "StepTimedOut"), "mesh.agent.durable"),
    **dict.fromkeys(("Suspended", "SyncContext", "durable"), "mesh.agent.durable"),
    **dict.fromkeys(("pull", "serve"), "mesh.agent.serve"),
    "Blob": "mesh.blob",
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
