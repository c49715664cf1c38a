"""Bugs that the checker must catch: `python -m tests.chaos.planted BUG serve --config FILE` is `mesh` with one of them.

Each bug changes the product in the memory of this process only; the product knows nothing of it. What a bug changes
must be there, else the process does not start: a bug that no longer fits is a test that no longer tests.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import gateway.callbacks
import mesh.store.functions
import mesh.store.store
from gateway.cli.main import main
from mesh.clock import now_ms, sleep
from mesh.machine import OPERATION, Event, Move, State
from mesh.store.library import as_loaded
from mesh.store.store import Store
from mesh.store.verbs import Accepted, Start

ACK_AHEAD_S = 0.3
FOREVER_MS = 1 << 40


def no_takeover() -> None:
    """A session that fell silent is never taken for dead."""
    _put(mesh.store.store, "SESSION_DEAD_AFTER_MS", FOREVER_MS)


def webhook_id_per_try() -> None:
    """Every try of a callback has an id of its own."""
    sign, tries = gateway.callbacks.sign_webhook, count(1)
    gateway.callbacks.sign_webhook = lambda secret, webhook_id, *rest: sign(
        secret, f"{webhook_id}.{next(tries)}", *rest
    )


def ack_ahead() -> None:
    """A start is acknowledged before the store has it."""
    start = Store.start
    going: set[asyncio.Task[Any]] = set()

    async def ahead(self: Store, *order: Any) -> Accepted:
        async def later() -> None:
            await sleep(ACK_AHEAD_S)
            await start(self, *order)

        task = asyncio.create_task(later())
        going.add(task)
        task.add_done_callback(going.discard)
        return Accepted(now_ms(), 0, "no_instance")

    _put(Store, "start", ahead)


def no_fence() -> None:
    """A superseded attempt may complete leased work."""
    _lua("if op.beat_ms ~= 0 or op.journal == 1 then", "if false then")


def dedup_without_digest() -> None:
    """A known key is taken for a repeat whatever is asked for."""
    _change_start("digest", "blind")


def no_dedup() -> None:
    """The idempotency key is forgotten."""
    _change_start("key", "")


def last_outcome_wins() -> None:
    """A second, other outcome replaces the first one."""
    assert not isinstance(OPERATION[State.SUCCEEDED][Event.SUCCEED], Move)
    OPERATION[State.SUCCEEDED][Event.SUCCEED] = Move(State.SUCCEEDED)


def callback_is_dropped() -> None:
    """Every outcome counts as answered to the first request, so no callback is owed."""
    complete = Store.complete

    async def answered(self: Store, *given: Any, **named: Any) -> Any:
        return await complete(self, *given, **(named | {"answered": True}))

    _put(Store, "complete", answered)


def stale_reads() -> None:
    """A gateway answers reads from what it read first."""
    read: Any = Store.read
    seen: dict[str, Any] = {}

    async def remembered(self: Store, operation_id: str, **named: Any) -> Any:
        if operation_id not in seen:
            seen[operation_id] = await read(self, operation_id, **named)
        return seen[operation_id]

    _put(Store, "read", remembered)


def leases_for_ever() -> None:
    """The lease of a start is never handed back, so an agent that died keeps its work."""
    _lua("if op.state == S.started and overdue(op.beat_by, now) then", "if false then")


def _lua(line: str, instead: str) -> None:
    source, line = mesh.store.functions.source, as_loaded("planted", line)
    assert source().count(line) == 1, f"the line is not there: {line}"
    _put(mesh.store.functions, "source", lambda: source().replace(line, instead))


def _change_start(field: str, value: str) -> None:
    start: Any = Store.start

    async def changed(self: Store, order: Start, *rest: Any) -> Any:
        assert hasattr(order, field)
        setattr(order, field, value)
        return await start(self, order, *rest)

    _put(Store, "start", changed)


def _put(where: object, name: str, instead: Any) -> None:
    assert hasattr(where, name), f"there is no {name} in {where}"
    setattr(where, name, instead)


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        no_takeover, webhook_id_per_try, ack_ahead, no_fence, dedup_without_digest, no_dedup, last_outcome_wins,
        callback_is_dropped, stale_reads, leases_for_ever,
    )
}  # fmt: skip


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    sys.argv[0] = "mesh"
    main()
