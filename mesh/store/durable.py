"""What running attempts say, many in one call: heartbeats, journal entries, chunks, and that they wait.

The verbs are heartbeat.lua, journal.lua and suspend.lua. Knows no callers and no couriers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh.store.layout import decode_line
from mesh.store.link import Link
from mesh.store.records import Records
from mesh.store.verbs import Append, Page, Step, Suspend, Task, Wanted

JOURNAL = "journal"
STREAM = "stream"


class Durable(Records):
    """The journals and streams of one partition. Raises as Store does; every verb may be repeated."""

    def __init__(self, link: Link, partition: str) -> None:
        super().__init__(link, partition)
        self.alone = False
        """No other gateway was alive at the last beat."""

    async def heartbeat(self, tasks: Sequence[Task]) -> list[str]:
        """`ok`, `cancel`, `lost`, `ended` or `unknown` per task."""
        details: list[bytes] = []
        packed: list[dict[str, Any]] = []
        for task in tasks:
            row: dict[str, Any] = {"id": task.id, "run": task.run, "attempt": task.attempt, "lease_ms": task.lease_ms}
            if task.details:
                details.append(task.details)
                row["details"] = len(details)
            packed.append(row)
        return [reply.decode() for reply in await self.fcall("mesh1_heartbeat", {"tasks": packed}, *details)]

    async def append(self, into: str, tasks: Sequence[Append]) -> tuple[int, list[Step]]:
        """Add to journals or streams (`into`); the store's time and what became of each task, in order."""
        bodies = [body for task in tasks for body in task.bodies]
        rows = [
            {"id": task.id, "run": task.run, "attempt": task.attempt, "at": task.at, "count": len(task.bodies)}
            for task in tasks
        ]
        arguments = {"into": into, "alone": int(self.alone), "tasks": rows}
        now_ms, *replies = await self.fcall("mesh1_append", arguments, *bodies)
        return now_ms, [Step(status.decode(), length, cancel == 1) for status, length, cancel in replies]

    async def lines(self, operation_id: str, into: str, after: int, limit: int) -> Page:
        """Elements of one list after the first `after`, about 1 MiB at most, for anybody."""
        _, pages = await self.pages(into, [Wanted(operation_id, 0, 0, after, limit)])
        return pages[0]

    async def pages(self, into: str, lists: Sequence[Wanted]) -> tuple[int, list[Page]]:
        """Pages of many lists for the attempts that hold the work, about 1 MiB in all, and the store's time."""
        arguments = {"into": into, "lists": [wanted._asdict() for wanted in lists]}
        now_ms, *replies = await self.fcall("mesh1_pages", arguments)
        return now_ms, [
            Page(status.decode(), cancel == 1, journal, stream, created, [decode_line(element) for element in elements])
            for status, cancel, journal, stream, created, elements in replies
        ]

    async def suspend(self, tasks: Sequence[Suspend]) -> tuple[int, list[Step]]:
        """Give attempts up until something wakes them; as `append`."""
        now_ms, *replies = await self.fcall("mesh1_suspend", {"tasks": [task._asdict() for task in tasks]})
        return now_ms, [
            Step(status.decode(), length, cancel == 1, line.decode()) for status, length, cancel, line in replies
        ]
