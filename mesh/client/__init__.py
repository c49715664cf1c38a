"""Callers: start, call, read, cancel and watch operations over HTTP.

    import mesh
    with mesh.SyncClient() as client:
        print(client.call("greeter", "greeter", "greet", "Ada"))

`Client` is the same for asyncio. Operations are named by strings or, typed, by their contract:
`await client.call("reports", Reports.render, Order(...))` gives what `Reports.render` promises. Knows no store.

    aio.py  sync.py  the two clients: I/O only      shared.py  what both have
    flow.py   what a client says, as steps          order.py   what a caller means
    batch.py  many starts in one request            schedules.py  starts by the clock
    events.py the event stream                      errors.py  what a caller can meet
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mesh.client.aio import Client, OperationHandle
    from mesh.client.errors import (
        GatewayUnreachable,
        OperationCanceled,
        OperationFailed,
        OperationTimedOut,
        OperationUnsuccessful,
        StillRunning,
    )
    from mesh.client.events import Chunk, Event
    from mesh.client.order import Page, Record
    from mesh.client.shared import StartOptions
    from mesh.client.sync import SyncClient, SyncOperationHandle

__all__ = [
    "Chunk",
    "Client",
    "Event",
    "GatewayUnreachable",
    "OperationCanceled",
    "OperationFailed",
    "OperationHandle",
    "OperationTimedOut",
    "OperationUnsuccessful",
    "Page",
    "Record",
    "StartOptions",
    "StillRunning",
    "SyncClient",
    "SyncOperationHandle",
]

_ROOMS: Final = {
    **dict.fromkeys(("Client", "OperationHandle"), "aio"),
    **dict.fromkeys(("SyncClient", "SyncOperationHandle"), "sync"),
    **dict.fromkeys(("Page", "Record"), "order"),
    **dict.fromkeys(("Chunk", "Event"), "events"),
    "StartOptions": "shared",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: who reads an event stream needs no HTTP client.
    if name not in __all__:
        message = f"module 'mesh.client' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(f"mesh.client.{_ROOMS.get(name, 'errors')}"), name)
    return value
