"""Schedules in the store: one typed method per verb. What a document means and when its times are is the gateway's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from mesh.errors import NotFound, PreconditionFailed, TooMany
from mesh.ids import PARTITION
from mesh.store.functions import Functions, Refused
from mesh.store.layout import Request
from mesh.store.link import Link
from mesh.store.parcels import CALLBACK_LEASE_MS, CANCEL_LEASE_MS, read_optional_work
from mesh.store.starting import refusal_of, start_parts
from mesh.store.verbs import KeyReused, Moved, Start

CLOCK: Final = "clock"
"""The way of a time that the schedule's own clock brought; others are those of `backfill`."""
CLAIM_LEASE_MS: Final = 5_000


class ScheduleRow(NamedTuple):
    """A schedule as stored; `facts` has what happened so far, as in lua/schedules.lua."""

    id: str
    name: str
    version: int
    document: bytes
    paused: bool
    next_ms: int
    facts: Mapping[str, str]
    queued: int


class DueSchedule(NamedTuple):
    """A claimed schedule. `queued`: the earliest time that waits its turn, with its way, or None."""

    id: str
    ns: str
    name: str
    version: int
    document: bytes
    next_ms: int
    queued: tuple[int, str] | None


class Time(NamedTuple):
    """One scheduled time of a claimed schedule, and where its clock goes from there (0: nowhere)."""

    id: str
    version: int
    at: int
    way: str
    next: int
    due: int


class Fired(NamedTuple):
    """`word`: started, repeated, skipped, queued, busy or moved. `canceled`: the cancel of the run before."""

    word: str
    operation_id: str = ""
    canceled: Moved | None = None


class ScheduleStore(Functions):
    """Rows only. Raises as Store does."""

    def __init__(self, link: Link, partition: str = PARTITION) -> None:
        super().__init__(link, partition)

    async def put(
        self, namespace: str, name: str, candidate_id: str, document: bytes, *, if_match: str, clock: str, next_ms: int,
        due_ms: int,
    ) -> tuple[str, str, int]:  # fmt: skip
        """(`created` | `replaced` | `same`, id, version). Raises PreconditionFailed, TooMany."""
        arguments = {
            "ns": namespace, "name": name, "id": candidate_id, "if_match": if_match, "clock": clock, "next": next_ms,
            "due": due_ms,
        }  # fmt: skip
        word, _, schedule_id, version = await self._ask("mesh1_schedule_put", name, arguments, document)
        return word.decode(), schedule_id.decode(), version

    async def delete(self, namespace: str, name: str, if_match: str) -> None:
        """Raises NotFound, PreconditionFailed."""
        await self._ask("mesh1_schedule_delete", name, {"ns": namespace, "name": name, "if_match": if_match})

    async def pause(self, namespace: str, name: str, *, paused: bool, next_ms: int = 0, due_ms: int = 0) -> None:
        """Raises NotFound."""
        arguments = {"ns": namespace, "name": name, "paused": int(paused), "next": next_ms, "due": due_ms}
        await self._ask("mesh1_schedule_pause", name, arguments)

    async def backfill(self, namespace: str, name: str, way: str, times: Sequence[int]) -> int:
        """How many times wait now. Raises NotFound, TooMany."""
        arguments = {"ns": namespace, "name": name, "way": way, "times": list(times)}
        return (await self._ask("mesh1_schedule_backfill", name, arguments))[2]

    async def _ask(self, verb: str, name: str, arguments: dict[str, Any], *payload: bytes) -> list[Any]:
        try:
            return await self.fcall(verb, arguments, *payload)
        except Refused as refused:
            if refused.word == "NO_SCHEDULE":
                raise unknown_schedule(name) from None
            if refused.word == "STALE_VERSION":
                raise _stale(name, refused.about) from None
            if refused.word == "QUEUE_FULL":
                detail = f"at most {refused.about} times of schedule {name!r} may wait for their turn; ask for fewer"
                raise TooMany(detail, code="schedule_queue_full", retry_after_s=60) from None
            detail = f"a namespace has at most {refused.about} schedules; remove some first"
            raise TooMany(detail, code="too_many_schedules", retry_after_s=60) from None

    # Reading ------------------------------------------------------------------------------------------------------

    async def names(self, namespace: str) -> dict[str, str]:
        """Name -> id of all."""
        raw = await self.link.call(b"HGETALL", self.keys.schedule_names(namespace))
        return {raw[at].decode(): raw[at + 1].decode() for at in range(0, len(raw), 2)}

    async def read(self, namespace: str, name: str) -> ScheduleRow:
        """Raises NotFound."""
        found = await self.link.call(b"HGET", self.keys.schedule_names(namespace), name)
        rows = await self.rows([found.decode()]) if found is not None else []
        if not rows:
            raise unknown_schedule(name)
        return rows[0]

    async def rows(self, schedule_ids: Sequence[str]) -> list[ScheduleRow]:
        """Those that are there, in one pipeline."""
        calls = [
            (
                self.link.call(b"HGETALL", self.keys.schedule(one)),
                self.link.call(b"ZCARD", self.keys.schedule_queue(one)),
            )
            for one in schedule_ids
        ]
        rows: list[ScheduleRow] = []
        for schedule_id, (hash_, queue) in zip(schedule_ids, calls, strict=True):
            raw, queued = await hash_, await queue
            fields = {raw[at].decode(): raw[at + 1] for at in range(0, len(raw), 2)}
            document = fields.pop("document", None)
            if document is None:
                continue
            facts = {name: text.decode() for name, text in fields.items()}
            told = (facts["name"], int(facts["version"]), document, facts["paused"] == "1", int(facts["next"]))
            rows.append(ScheduleRow(schedule_id, *told, facts, queued))
        return rows

    async def runs(self, schedule_id: str, before: tuple[int, str] | None, limit: int) -> list[tuple[str, int]]:
        """(operation id, its scheduled time), newest first, strictly behind `before`."""
        # Of equal times, which only a change of the document can bring, all are read: they are few.
        highest = b"+inf" if before is None else before[0]
        raw = await self.link.call(
            b"ZRANGE", self.keys.schedule_runs(schedule_id), highest, b"-inf", b"BYSCORE", b"REV", b"LIMIT", 0,
            limit + 64, b"WITHSCORES",
        )  # fmt: skip
        found = [(raw[at].decode(), int(float(raw[at + 1]))) for at in range(0, len(raw), 2)]
        return [(one, at) for one, at in found if before is None or (at, one) < before][:limit]

    # The clockwork ------------------------------------------------------------------------------------------------

    async def claim(
        self, count: int, held: Mapping[str, int], most: int
    ) -> tuple[int, list[DueSchedule], int | None]:
        """(store's time, schedules to look at within CLAIM_LEASE_MS, when to come again or None).

        `count` in all, in turns by namespace; `held`: how many of a namespace are looked at already, `most` at most.
        """
        arguments = {"count": count, "lease_ms": CLAIM_LEASE_MS, "most": most, "held": dict(held)}
        now, rows, next_at = await self.fcall("mesh1_schedule_claim", arguments)
        return now, [_due(row) for row in rows], None if next_at < 0 else next_at

    async def fire(self, time: Time, overlap: str, start: Start, request: Request, body: bytes) -> Fired:
        """Decide about one time and start its run, in one step. Raises what `Store.start` raises."""
        arguments = {
            **time._asdict(), "overlap": overlap, "session": start.session, "cancel_lease_ms": CANCEL_LEASE_MS,
            "callback_lease_ms": CALLBACK_LEASE_MS,
        }  # fmt: skip
        try:
            reply = await self.fcall("mesh1_schedule_fire", arguments, *start_parts(start, request, body))
        except Refused as refused:
            refusal = refusal_of(refused)
            if isinstance(refusal, KeyReused):
                return Fired("repeated", refusal.id)
            raise refusal from None
        word = reply[0].decode()
        if len(reply) < 4:  # noqa: PLR2004
            return Fired(word)
        canceled = reply[3]
        moved = None
        if canceled and len(canceled) > 4:  # noqa: PLR2004
            moved = Moved(canceled[0].decode(), canceled[4].decode(), read_optional_work(canceled[3]))
        return Fired(word, reply[2].decode(), moved)

    async def pass_over(self, time: Time, what: str, told: bytes) -> None:
        """The time, or all up to the next, is over without a run; `what`: `missed` or `failed`, `told` JSON of it."""
        await self.fcall("mesh1_schedule_pass", {**time._asdict(), "what": what, "told": told.decode()})


def _due(row: list[Any]) -> DueSchedule:
    schedule_id, namespace, name, version, document, next_ms, first = row
    at, _, way = first.decode().partition(".")
    queued = (int(at), way) if at else None
    return DueSchedule(schedule_id.decode(), namespace.decode(), name.decode(), version, document, next_ms, queued)


def unknown_schedule(name: str) -> NotFound:
    """The one wording for a schedule that is not there, or not there for this namespace."""
    return NotFound(f"there is no schedule {name[:80]!r}; `mesh schedule list` shows yours", code="unknown_schedule")


def _stale(name: str, version: str) -> PreconditionFailed:
    if version == "0":
        return PreconditionFailed(f"there is no schedule {name!r} yet; leave If-Match out to create it")
    now = f'schedule {name!r} is at version {version}, ETag "v{version}"'
    return PreconditionFailed(f"{now}; read it again and repeat with that")
