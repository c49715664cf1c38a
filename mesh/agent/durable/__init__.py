"""Handlers that survive: what goes through their context is recorded once and found again after a crash.

entries.py  what stands in a journal        replay.py   what it says, by name and occurrence
ledger.py   what is sent next               parking.py  who waits for what      (these four are pure)
link.py     the port to the mesh            exchange.py pages in, entries and chunks out
attempt.py  one attempt, from task to end   resting.py  when it goes            chunks.py  the stream
large.py    results outside the journal           blobs.py    how these travel
steps.py    calls.py   gather.py  gathered.py  waits.py    what the context offers
context.py  sync.py    handler.py  functions.py            how code is given it, and what its end means
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mesh.agent.durable.context import Context
    from mesh.agent.durable.errors import (
        CallRefused,
        CancelRequested,
        JournalMismatch,
        LeaseLost,
        QuorumMissed,
        StepFailed,
        StepTimedOut,
        Suspended,
    )
    from mesh.agent.durable.gathered import Gathered, Source
    from mesh.agent.durable.handler import durable
    from mesh.agent.durable.steps import Retry
    from mesh.agent.durable.sync import SyncContext

__all__ = [
    "CallRefused",
    "CancelRequested",
    "Context",
    "Gathered",
    "JournalMismatch",
    "LeaseLost",
    "QuorumMissed",
    "Retry",
    "Source",
    "StepFailed",
    "StepTimedOut",
    "Suspended",
    "SyncContext",
    "durable",
]

_ROOMS: Final = {
    "Context": "context",
    **dict.fromkeys(("Gathered", "Source"), "gathered"),
    "durable": "handler",
    "Retry": "steps",
    "SyncContext": "sync",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: hosts of plain handlers need none of it.
    if name not in __all__:
        message = f"module 'mesh.agent.durable' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(f"mesh.agent.durable.{_ROOMS.get(name, 'errors')}"), name)
    return value
