"""Operations, deliveries and sessions in the store: one typed method per verb, one function call per state change."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from mesh.ids import PARTITION
from mesh.machine import Delivery, Event, Kind
from mesh.store.durable import Durable
from mesh.store.functions import Refused, meaning
from mesh.store.layout import Outcome, Request, encode
from mesh.store.library import LIMITS
from mesh.store.link import Link, StoreReply
from mesh.store.merging import Merging, of_all, of_one
from mesh.store.parcels import (
    CALLBACK_LEASE_MS,
    CANCEL_LEASE_MS,
    answers_parts,
    complete_arguments,
    read_begun,
    read_completed,
    read_optional_work,
    read_work,
    refused_completion,
    refused_move,
    unread,
)
from mesh.store.starting import (
    NoSession,
    Reply,
    many_parts,
    read_refused,
    read_started,
    refusal_of,
    start_parts,
    together,
)
from mesh.store.verbs import Beat, Claimed, Completed, Moved, Record, Start, Work

SESSION_DEAD_AFTER_MS = 3_000
CLAIM_BYTES = 8 << 20
START_MANY_MAX = 128
"""Starts in one call: it is one turn of the store's only thread."""


class Store(Durable):
    """The operations of one partition.

    All methods raise StoreUnavailable or OutcomeUnknown when the store cannot answer; both may be repeated, for every
    verb is idempotent.
    """

    def __init__(self, link: Link, partition: str = PARTITION) -> None:
        super().__init__(link, partition)
        self._starts = Merging(self.keys.root, "mesh1_start_many", together)
        self._answers = Merging(self.keys.root, "mesh1_answers", answers_parts)

    async def secret(self, name: str, candidate: str) -> str:
        """A secret that the store keeps for all gateways; `candidate` becomes it when there is none."""
        await self.link.call(b"HSETNX", self.keys.meta, name, candidate)
        return (await self.link.call(b"HGET", self.keys.meta, name)).decode()

    async def exist(self, operation_ids: Sequence[str]) -> list[bool]:
        """Which of these operations have a record, in one pipeline."""
        calls = [self.link.call(b"EXISTS", self.keys.operation(one)) for one in operation_ids]
        return [await call == 1 for call in calls]

    # Callers ------------------------------------------------------------------------------------------------------

    def start(
        self, start: Start, request: Request, body: bytes, seat: tuple[bytes, ...] = ()
    ) -> Coroutine[Any, Any, Reply]:
        """Accept an operation and lease its first attempt; `seat` is PullStore.seat.

        Raises NoEndpoint, NoSession, ParentLost, OtherParent, BacklogFull.
        """
        parts = start_parts(start, request, body, seat)
        return self.merged(self._starts, "mesh1_start", parts, read_started, read_refused)

    async def start_many(self, starts: Sequence[tuple[Start, Request, bytes]]) -> list[Reply | Exception]:
        """Accept operations that nobody leases yet (`delay_ms`, `starts_at`), at most START_MANY_MAX, in one step.

        In place of a reply what `start` would have raised for it.
        """
        parts = many_parts([start_parts(*asked) for asked in starts], leased=False)
        replies = await self.called("mesh1_start_many", *parts)
        found: list[Reply | Exception] = []
        for reply in of_all(replies):
            try:
                found.append(read_started(of_one(reply)))
            except StoreReply as fault:
                error = meaning(fault)
                found.append(refusal_of(error) if isinstance(error, Refused) else error)
        return found

    async def knows(self, key: str) -> bool:
        """Whether an operation has the idempotency key (its digest, "" for none)."""
        return bool(key) and await self.link.call(b"EXISTS", self.keys.idempotency(key)) == 1

    async def cancel(self, operation_id: str, namespace: str, session: str) -> Moved | None:
        """None: no such operation in this namespace. The reply's work is leased to `session`."""
        arguments = {
            "id": operation_id, "ns": namespace, "session": session, "cancel_lease_ms": CANCEL_LEASE_MS,
            "callback_lease_ms": CALLBACK_LEASE_MS,
        }  # fmt: skip
        try:
            reply = await self.fcall("mesh1_cancel", arguments)
        except Refused:
            return None
        if len(reply) < 5:  # noqa: PLR2004
            return Moved(reply[0].decode())
        return Moved(reply[0].decode(), reply[4].decode(), read_optional_work(reply[3]))

    # Agents -------------------------------------------------------------------------------------------------------

    def started(
        self, operation_id: str, run: int, attempt: int, session: str, token: str, beat_ms: int, instance: str = "",
        links: Sequence[str] = (), *, counted: bool = False, rides: bool = False,
    ) -> Coroutine[Any, Any, Moved]:  # fmt: skip
        """`instance` answered 201 with its `token` and `links`; `beat_ms` > 0 makes the attempt leased.

        `counted`: shown among what runs at the instance. `rides`: nobody waits for it (Link.join).
        """
        arguments = {
            "id": operation_id,
            "run": run,
            "attempt": attempt,
            "session": session,
            "beat_ms": beat_ms,
            "cancel_lease_ms": CANCEL_LEASE_MS,
            "instance": instance,
        }
        if counted:
            arguments["counted"] = 1
        parts = (encode(arguments), token.encode(), encode(links) if links else b"")
        return self.merged(self._answers, "mesh1_started", parts, read_begun, refused_move, rides=rides)

    def complete(
        self,
        operation_id: str,
        run: int,
        attempt: int,
        event: Event,
        outcome: bytes,
        *,
        session: str,
        answered: bool = False,
        instance: str = "",
    ) -> Coroutine[Any, Any, Completed]:
        """Record an outcome (packed `Outcome`) and lease the callback it owes; `instance` answered a start with it."""
        arguments = complete_arguments(run, attempt, event, session, instance, answered=answered, alone=self.alone)
        parts = (arguments, operation_id.encode(), outcome)
        return self.merged(self._answers, "mesh1_complete", parts, read_completed, refused_completion)

    async def retry(
        self, operation_id: str, run: int, attempt: int, *, delay_ms: int, detail: str, outcome: bytes,
        instance: str = "", free: bool = False,
    ) -> Moved:  # fmt: skip
        """The attempt failed; back off `delay_ms`, or end with `outcome` when no attempt is left.

        `free`: it was the mesh's own trouble, and counts against no limit of attempts.
        """
        arguments = {
            "id": operation_id, "run": run, "attempt": attempt, "delay_ms": delay_ms, "detail": detail,
            "instance": instance, "free": int(free),
        }  # fmt: skip
        try:
            reply = await self.fcall("mesh1_retry", arguments, outcome)
        except Refused:
            return Moved("unknown")
        return Moved(reply[0].decode(), reply[3].decode() if len(reply) > 3 else "")  # noqa: PLR2004

    async def release(self, operation_id: str, run: int, attempt: int, reason: str, *, session: str = "") -> Moved:
        """The attempt surely reached nobody: give it back and wait, shown as blocked by `reason`.

        Name the `session`: the number of a released attempt is used again, and a call that is sent again would give
        back the next holder's.
        """
        arguments = {"id": operation_id, "run": run, "attempt": attempt, "session": session, "reason": reason}
        try:
            reply = await self.fcall("mesh1_release", arguments)
        except Refused:
            return Moved("unknown")
        return Moved(reply[0].decode())

    # Couriers -----------------------------------------------------------------------------------------------------

    async def claim(self, session: str, count: int) -> Claimed:
        """Fire due timers and lease what they owe. Raises NoSession."""
        arguments = {
            "session": session, "count": count, "bytes": CLAIM_BYTES, "cancel_lease_ms": CANCEL_LEASE_MS,
            "callback_lease_ms": CALLBACK_LEASE_MS,
        }  # fmt: skip
        try:
            now, works, ended, lines, next_at = await self.fcall("mesh1_claim", arguments)
        except Refused as refused:
            raise NoSession(refused.about) from None
        return Claimed(
            now,
            [read_work(work) for work in works],
            [one.decode() for one in ended],
            [line.decode() for line in lines],
            None if next_at < 0 else next_at,
        )

    async def unblock(
        self, endpoint_id: str, session: str, count: int, reason: str = "", *, probe: bool = False, pin: str = ""
    ) -> tuple[list[Work], str]:
        """Lease the head of an endpoint's waiting line; with `reason`, only correct what it shows. Raises NoSession.

        `probe`: lease one, that which has failed least, the newest of several. `pin`: the line of what waits for it.
        """
        arguments = {
            "endpoint": endpoint_id, "session": session, "count": count, "bytes": CLAIM_BYTES, "reason": reason,
            "probe": int(probe), "pin": pin,
        }  # fmt: skip
        try:
            _, works, stopped = await self.fcall("mesh1_unblock", arguments)
        except Refused as refused:
            raise NoSession(refused.about) from None
        return [read_work(work) for work in works], stopped.decode()

    def delivered(self, operation_id: str, run: int, kind: Kind) -> Coroutine[Any, Any, None]:
        """The receiver has the cancel or callback. Where it is refused nobody waits for it any more.

        Rides (Link.join): a gateway that is killed before it is written sends again, as one whose receiver's answer was
        lost.
        """
        parts = (encode({"id": operation_id, "run": run, "kind": str(kind)}),)
        return self.merged(self._answers, "mesh1_delivered", parts, unread, unread, rides=True)

    async def defer(
        self, operation_id: str, run: int, kind: Kind, *, tries: int, delay_ms: int, dead: bool, detail: str
    ) -> str:
        """The try failed: due again after `delay_ms`, or dead. Returns `deferred`, `dead`, `same` or `unknown`."""
        arguments = {
            "id": operation_id, "run": run, "kind": kind, "tries": tries, "delay_ms": delay_ms, "dead": int(dead),
            "detail": detail,
        }  # fmt: skip
        return await self._about_delivery("mesh1_defer", arguments)

    async def redeliver(self, operation_id: str, run: int, kind: Kind, namespace: str) -> str:
        """`due`, `same`, `unknown` (no such delivery in this namespace) or `not_owed`."""
        arguments = {"id": operation_id, "run": run, "kind": kind, "ns": namespace}
        return await self._about_delivery("mesh1_redeliver", arguments)

    async def _about_delivery(self, verb: str, arguments: dict[str, Any]) -> str:
        try:
            reply = await self.fcall(verb, arguments)
        except Refused as refused:
            return refused.word.lower()
        return reply[0].decode()

    async def dead(self, namespace: str, limit: int) -> list[tuple[str, int]]:
        """Ids of dead deliveries (`operation.run.kind`) with the time of death, newest first."""
        raw = await self.link.call(b"ZRANGE", self.keys.dead(namespace), 0, limit - 1, b"REV", b"WITHSCORES")
        return [(raw[i].decode(), int(float(raw[i + 1]))) for i in range(0, len(raw), 2)]

    # Sessions -----------------------------------------------------------------------------------------------------

    async def beat(self, session: str, *, join: bool = False, replaces: str = "") -> Beat:
        """Join or stay, and take over the dead. `replaces`: name prefix of sessions known to be dead."""
        arguments = {
            "session": session, "join": int(join), "dead_after_ms": SESSION_DEAD_AFTER_MS, "replaces": replaces
        }  # fmt: skip
        word, now, sessions, version, left = await self.fcall("mesh1_beat", arguments)
        self.alone = sessions == 1
        return Beat(word == b"alive", now, sessions, version, left)

    async def leave(self, session: str) -> int:
        """Hand everything back; how much is left (repeat until 0)."""
        return (await self.fcall("mesh1_leave", {"session": session}))[0]

    async def held(self, session: str, limit: int) -> list[str]:
        """What the store believes this session is working on."""
        return [one.decode() for one in await self.link.call(b"ZRANGE", self.keys.held(session), 0, limit - 1)]

    async def hand_back(self, session: str, operation_ids: Sequence[str]) -> None:
        """Return leases that this session knows nothing of; in several calls when they are many."""
        for at in range(0, len(operation_ids), LIMITS["takeover"]):
            batch = [*operation_ids[at : at + LIMITS["takeover"]]]
            await self.fcall("mesh1_hand_back", {"session": session, "ids": batch})


def deliveries(record: Record) -> list[tuple[Kind, Delivery, int, int]]:
    """The deliveries of a record: kind, state, tries, time of the next try or end of the lease."""
    head = record.head
    rows = [(Kind.START, Delivery(head.start), head.attempt, head.start_at)]
    if head.cancel:
        rows.append((Kind.CANCEL, Delivery(head.cancel), head.cancel_tries, head.cancel_at))
    if head.callback:
        rows.append((Kind.CALLBACK, Delivery(head.callback), head.callback_tries, head.callback_at))
    return rows


def pack(outcome: Outcome) -> bytes:
    """The stored form of an outcome; equal outcomes have equal bytes, which is how duplicates are told."""
    return encode(outcome)
