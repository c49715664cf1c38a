"""Who waits and runs at endpoints, by namespace, as the store counts it at one moment (lua/queue.lua)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

FIELDS: Final = 5
"""Of one namespace in the reply."""


class Queued(NamedTuple):
    """What of one namespace waits and runs at an endpoint. `next_ms`: since when its next in turn could begin, 0: none.

    `parked`: all that wait do so at the namespace's own limit.
    """

    namespace: str
    waiting: int
    next_ms: int
    running: int
    parked: bool


class Queue(NamedTuple):
    """Who waits and runs at an endpoint. `oldest_ms`: since when the oldest could begin, 0: none waits."""

    waiting: int
    oldest_ms: int
    running: int
    namespaces: list[Queued]


def read_queues(rows: list[Any]) -> list[Queue]:
    """Of each endpoint asked for; the busiest namespaces first."""
    queues: list[Queue] = []
    for waiting, oldest, running, flat in rows:
        of = [
            Queued(flat[at].decode(), *flat[at + 1 : at + 4], parked=flat[at + 4] == 1 and flat[at + 1] > 0)
            for at in range(0, len(flat), FIELDS)
        ]
        of.sort(key=lambda one: (-one.waiting, -one.running, one.namespace))
        queues.append(Queue(waiting, oldest, running, of))
    return queues
