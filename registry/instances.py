"""The instances of every endpoint as this gateway sees them: leases, draining, and when to look again.

A renewal does not move the registry's version, so a lease is read anew shortly before the one known here ends. An
instance is gone once a read made after its lease says so, or when no read succeeded for UNCONFIRMED_MS although the
store answers. Knows nothing of names and permissions (catalog.py) nor of choosing (routing.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

from mesh.store.catalog import CatalogStore
from mesh.store.verbs import InstanceRow, Share
from registry.health import Reach
from registry.instance import (
    ATTENDING_MS,
    FOREVER_MS,
    UNCONFIRMED_MS,
    Drain,
    Instance,
    StoreTime,
    document_of,
    flapping,
    pack,
    pack_attending,
    read_document,
)
from registry.policy import Flapping
from registry.spec import TARGET

__all__ = [
    "ATTENDING_MS", "FOREVER_MS", "FORGET_MS", "UNCONFIRMED_MS", "Instance", "Instances", "Roster", "Static",
    "StoreTime", "pack", "pack_attending",
]  # fmt: skip

READS_AT_ONCE: Final = 500
FORGET_MS: Final = 3_600_000
"""Instances offline for longer are left out of answers; the store drops them when it needs the room."""


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
    """What the registration of an endpoint says of its instances.

    `url` "" for none; `changed_at_ms` Unix time of its last change.
    """

    url: str
    changed_at_ms: int
    flapping: Flapping = Flapping()
    shares: Mapping[str, Share] = MappingProxyType({})


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
        """Read the instances of all endpoints: by id, with what their registrations say."""
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
        left = old is not None and old.draining and not (old.drain is not None and old.drain.told)
        if old is None or left or now >= old.lease_end_ms or document_of(old) != document:
            return False
        fresh = replace(old, lease_end_ms=self._time.local(expires_at_ms), read_at_ms=now, spared=None)
        self._rosters[endpoint_id] = Roster(fresh if one is old else one for one in roster.instances)
        return True

    async def _read(self, ids: list[str], targets: dict[str, Static]) -> list[Roster]:
        if not ids:
            return []
        asked_at = self._time.now()
        told = asyncio.ensure_future(self._store.outages())
        found = await asyncio.gather(*[self._store.instances(one) for one in ids])
        outages = await told
        rosters: list[Roster] = []
        for endpoint_id, rows in zip(ids, found, strict=True):
            roster, static = self.roster(endpoint_id), targets[endpoint_id]
            # A target has no lease; its row, if there is one, says how its checks went.
            instances = [self._instance(roster, static, row, outages, asked_at) for row in rows if row.id != TARGET]
            if static.url:
                row = next((row for row in rows if row.id == TARGET), None)
                instances.append(_target(roster, static, row, asked_at))
            rosters.append(Roster(instances))
        return rosters

    def _instance(
        self, before: Roster, static: Static, row: InstanceRow, outages: Sequence[tuple[int, int]], read_at_ms: int
    ) -> Instance:
        document = read_document(row.document)
        old = before.get(row.id)
        reach = Reach() if old is None else old.reach
        if old is not None and (old.since_ms != row.since_ms or document_of(old) != row.document):
            reach.anew()
        drain = _drain(row, document.version, static.shares)
        lease_end_ms, spared = _lease_end(row.expires_at_ms, document.ttl_ms, outages)
        return Instance(
            row.id, document.url, document.version, document.weight, document.ttl_ms, row.since_ms, drain is not None,
            self._time.local(lease_end_ms), read_at_ms, reach, drain=drain, spared=spared, checks=row.checks,
            flapping=flapping(row.arrivals_ms, static.flapping, self._time), contract=row.contract,
        )  # fmt: skip


def _lease_end(at_ms: int, ttl_ms: int, outages: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int] | None]:
    """P300, as mesh/store/lua/outages.lua reckons too; and the outage that made the difference."""
    spared = None
    for begin, end in outages:
        if at_ms >= begin and end + ttl_ms > at_ms:
            at_ms, spared = end + ttl_ms, (begin, end)
    return at_ms, spared


def _drain(row: InstanceRow, version: str, shares: Mapping[str, Share]) -> Drain | None:
    if row.draining:
        told = row.draining > 1
        return Drain("it was told to drain" if told else "it left and finishes what it has", row.since_ms, told)
    share = shares.get(version)
    if share is not None and share.draining_since_ms:
        return Drain(f"version {version!r} drains", max(share.draining_since_ms, row.since_ms), told=True)
    return None


def _target(before: Roster, static: Static, row: InstanceRow | None, read_at_ms: int) -> Instance:
    old = before.get(TARGET)
    reach = Reach() if old is None else old.reach
    if old is not None and old.since_ms != static.changed_at_ms:
        reach.anew()
    known = row is not None and row.since_ms == static.changed_at_ms
    return Instance(
        id=TARGET, url=static.url, version="", weight=1, ttl_ms=0, since_ms=static.changed_at_ms, draining=False,
        lease_end_ms=FOREVER_MS, read_at_ms=read_at_ms, reach=reach,
        checks=row.checks if row is not None and known else MappingProxyType({}),
    )  # fmt: skip
