"""The instances of every endpoint as this gateway sees them: leases, draining, and when to look again.

A renewal does not move the registry's version, so a lease is read anew shortly before the one known here ends. An
instance is gone once a read made after its lease says so, or when no read succeeded for UNCONFIRMED_MS.
Knows nothing of names and permissions (catalog.py) nor of choosing (routing.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from mesh.clock import monotonic_s, now_ms
from mesh.store.catalog import CatalogStore
from mesh.store.verbs import InstanceRow
from registry.health import Health, Judgement, Reach
from registry.spec import TARGET, TTL_MS, InstanceSpec

UNCONFIRMED_MS: Final = 1_500
READ_AHEAD_MS: Final = 1_000
READ_AGAIN_MS: Final = 200
FOREVER_MS: Final = 1 << 62
READS_AT_ONCE: Final = 500
ATTENDING_MS: Final = 10_000
"""An instance that asks for work is there for so long after it asked last, or was answered."""
FORGET_MS: Final = 3_600_000
"""Instances offline for longer are left out of answers; the store drops them when it needs the room."""


def tick() -> int:
    """Milliseconds on this process's own clock, which never steps."""
    return int(monotonic_s() * 1000)


class StoreTime:
    """The store's clock, whose times leases are written in, beside the local one that never steps."""

    def __init__(self, local: Callable[[], int] = tick) -> None:
        self.now = local
        self._ahead_ms = now_ms() - local()

    def heard(self, store_ms: int) -> None:
        """The store said what time it is."""
        self._ahead_ms = store_ms - self.now()

    def local(self, store_ms: int) -> int:
        return store_ms - self._ahead_ms

    def wall(self, local_ms: int) -> int:
        return local_ms + self._ahead_ms


class _Document(msgspec.Struct):
    """An instance as stored; fields that a newer gateway adds are passed over. Without `url` it asks for its work."""

    url: str = ""
    version: str = ""
    weight: int = 1
    ttl_ms: int = TTL_MS


_decode = msgspec.json.Decoder(_Document).decode


def pack(spec: InstanceSpec) -> bytes:
    """The stored form: equal registrations are equal bytes, which is how the store tells a heartbeat."""
    return msgspec.json.encode(_Document(spec.url, spec.version, spec.weight, spec.ttl_ms))


def pack_attending(version: str) -> bytes:
    """The stored form of an instance that asks for its work."""
    return msgspec.json.encode(_Document("", version, 1, ATTENDING_MS))


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One address of an agent, or "" for one that asks for its work.

    Local times, but `since_ms` (registered, changed or drained) is Unix time.
    """

    id: str
    url: str
    version: str
    weight: int
    ttl_ms: int
    since_ms: int
    draining: bool
    lease_end_ms: int
    read_at_ms: int
    reach: Reach
    probe: int = 0
    """Set on what the router hands out while the breaker lets a single request pass."""

    @property
    def live_until_ms(self) -> int:
        unconfirmed = self.read_at_ms < self.lease_end_ms and not self.draining
        return self.lease_end_ms + (UNCONFIRMED_MS if unconfirmed else 0)

    @property
    def read_next_ms(self) -> int:
        """When the store should be asked whether the lease was renewed."""
        if self.draining or self.read_at_ms >= self.lease_end_ms:
            return FOREVER_MS  # coming back moves the registry's version
        ahead_ms = min(READ_AHEAD_MS, self.ttl_ms // 4)
        return max(self.lease_end_ms - ahead_ms, self.read_at_ms + READ_AGAIN_MS)

    def judge(self, now: int, time: StoreTime) -> Judgement:
        if now >= self.live_until_ms:
            why = f"no {'heartbeat' if self.url else 'poll'} for its ttl of {self.ttl_ms} ms"
            return Judgement(Health.OFFLINE, why, time.wall(self.lease_end_ms))
        if self.draining:
            return Judgement(Health.DRAINING, "it was removed and finishes what it has", self.since_ms)
        if self.reach.pause_ms:
            return Judgement(Health.SUSPECT, "requests do not get through", time.wall(self.reach.since_ms))
        why = "its lease is kept up" if self.url else "it asks for work"
        if self.id == TARGET:
            why = "the target of its registration"
        return Judgement(Health.HEALTHY, why, self.since_ms)


class Roster:
    """The instances of one endpoint at one moment; never changed, only replaced."""

    __slots__ = ("instances", "read_next_ms")

    def __init__(self, instances: Iterable[Instance]) -> None:
        self.instances = tuple(instances)
        self.read_next_ms = min((one.read_next_ms for one in self.instances), default=FOREVER_MS)

    def get(self, instance_id: str) -> Instance | None:
        return next((one for one in self.instances if one.id == instance_id), None)


EMPTY: Final = Roster(())


class Static(NamedTuple):
    """The registered address of an endpoint, "" for none, and when the endpoint last changed (Unix time)."""

    url: str
    changed_at_ms: int


class Instances:
    """Rosters by endpoint id. Every `await` here reads the store."""

    def __init__(self, store: CatalogStore, time: StoreTime) -> None:
        self._store = store
        self._time = time
        self._rosters: dict[str, Roster] = {}
        self._targets: dict[str, Static] = {}

    def roster(self, endpoint_id: str) -> Roster:
        return self._rosters.get(endpoint_id, EMPTY)

    async def load(self, targets: dict[str, Static]) -> None:
        """Read the instances of all endpoints: by id, with their registered targets."""
        ids = list(targets)
        rosters: dict[str, Roster] = {}
        for begin in range(0, len(ids), READS_AT_ONCE):
            part = ids[begin : begin + READS_AT_ONCE]
            rosters.update(zip(part, await self._read(part, targets), strict=True))
        self._rosters, self._targets = rosters, targets

    async def reread(self, endpoint_ids: list[str]) -> None:
        """Read some endpoints' instances anew."""
        known = [one for one in endpoint_ids if one in self._targets]
        for endpoint_id, roster in zip(known, await self._read(known, self._targets), strict=True):
            if endpoint_id in self._targets:  # not deleted while the read was under way
                self._rosters[endpoint_id] = roster

    async def reread_due(self) -> int:
        """Read those whose known lease is about to end. Returns the local time of the next such read."""
        now = self._time.now()
        due = [one for one, roster in self._rosters.items() if roster.read_next_ms <= now]
        await self.reread(due[:READS_AT_ONCE])
        return min((roster.read_next_ms for roster in self._rosters.values()), default=FOREVER_MS)

    def renewed(self, endpoint_id: str, instance_id: str, document: bytes, expires_at_ms: int) -> bool:
        """A heartbeat went through this gateway; False when it changed more than the lease."""
        roster = self.roster(endpoint_id)
        old = roster.get(instance_id)
        now = self._time.now()
        if old is None or old.draining or now >= old.lease_end_ms or _document(old) != document:
            return False
        fresh = replace(old, lease_end_ms=self._time.local(expires_at_ms), read_at_ms=now)
        self._rosters[endpoint_id] = Roster(fresh if one is old else one for one in roster.instances)
        return True

    async def _read(self, ids: list[str], targets: dict[str, Static]) -> list[Roster]:
        asked_at = self._time.now()
        found = await asyncio.gather(*[self._store.instances(one) for one in ids])
        rosters: list[Roster] = []
        for endpoint_id, rows in zip(ids, found, strict=True):
            roster = self.roster(endpoint_id)
            instances = [self._instance(roster, row, asked_at) for row in rows]
            if targets[endpoint_id].url:
                instances.append(_target(roster, targets[endpoint_id], asked_at))
            rosters.append(Roster(instances))
        return rosters

    def _instance(self, before: Roster, row: InstanceRow, read_at_ms: int) -> Instance:
        document = _decode(row.document)
        old = before.get(row.id)
        reach = Reach() if old is None else old.reach
        if old is not None and (old.since_ms != row.since_ms or _document(old) != row.document):
            reach.reached()
        return Instance(
            row.id, document.url, document.version, document.weight, document.ttl_ms, row.since_ms, bool(row.draining),
            self._time.local(row.expires_at_ms), read_at_ms, reach,
        )  # fmt: skip


def _target(before: Roster, static: Static, read_at_ms: int) -> Instance:
    old = before.get(TARGET)
    reach = Reach() if old is None else old.reach
    if old is not None and old.since_ms != static.changed_at_ms:
        reach.reached()
    return Instance(
        id=TARGET, url=static.url, version="", weight=1, ttl_ms=0, since_ms=static.changed_at_ms, draining=False,
        lease_end_ms=FOREVER_MS, read_at_ms=read_at_ms, reach=reach,
    )  # fmt: skip


def _document(instance: Instance) -> bytes:
    return msgspec.json.encode(_Document(instance.url, instance.version, instance.weight, instance.ttl_ms))
