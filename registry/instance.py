"""One instance as this gateway sees it: its lease, what drains it, what speaks against it, and the judgement. Pure.

Knows neither the store nor the others of its endpoint; who reads and keeps instances is instances.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from mesh.clock import monotonic_ms, now_ms, to_rfc3339
from mesh.store.verbs import Check
from registry.health import FAILED_ROW, Health, Judgement, Reach
from registry.policy import Flapping
from registry.spec import TARGET, TTL_MS, InstanceSpec

UNCONFIRMED_MS: Final = 1_500
READ_AHEAD_MS: Final = 1_000
READ_AGAIN_MS: Final = 200
FOREVER_MS: Final = 1 << 62
ATTENDING_MS: Final = 10_000
"""An instance that asks for work is there for so long after it asked last, or was answered."""
PROBE: Final = "probe"
"""The kind of check that needs no operation; `canary:` and the service are the others."""


class StoreTime:
    """The store's clock, whose times leases are written in, beside the local one that never steps."""

    def __init__(self, local: Callable[[], int] = monotonic_ms) -> None:
        self.now = local
        self._ahead_ms = now_ms() - local()
        self.blind = False
        """The store does not answer: that a lease was not renewed is not known, only that nobody could ask."""

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


read_document = msgspec.json.Decoder(_Document).decode


def pack(spec: InstanceSpec) -> bytes:
    """The stored form: equal registrations are equal bytes, which is how the store tells a heartbeat."""
    return msgspec.json.encode(_Document(spec.url, spec.version, spec.weight, spec.ttl_ms))


def pack_attending(version: str) -> bytes:
    """The stored form of an instance that asks for its work."""
    return msgspec.json.encode(_Document("", version, 1, ATTENDING_MS))


def document_of(instance: Instance) -> bytes:
    """The stored form that this was read from."""
    return msgspec.json.encode(_Document(instance.url, instance.version, instance.weight, instance.ttl_ms))


class Drain(NamedTuple):
    """Why an instance gets no new work, and since when (Unix ms). `told`: it was not its own wish."""

    why: str
    since_ms: int
    told: bool


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One address of an agent, or "" for one that asks for its work.

    Local times, but `since_ms` (registered, changed or drained) is Unix time, and so are those of `checks`.
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
    canary: bool = False
    """Set on what the router hands out to a canary, of which the breaker makes nothing."""
    drain: Drain | None = None
    spared: tuple[int, int] | None = None
    """From and to (Unix ms) of the outage that its lease outlasts."""
    checks: Mapping[str, Check] = field(default_factory=dict[str, Check])
    flapping: tuple[str, int, int] | None = None
    """Why, since when (Unix ms), and until when, local."""
    contract: int = 0
    """The version of its endpoint at which the contract had changed last when it registered, 0 unknown."""

    @property
    def live_until_ms(self) -> int:
        unconfirmed = self.read_at_ms < self.lease_end_ms and not self.draining
        return self.lease_end_ms + (UNCONFIRMED_MS if unconfirmed else 0)

    def alive(self, now: int, time: StoreTime) -> bool:
        """Its lease holds, or nobody can know: the store was away when it was to be renewed."""
        return now < self.live_until_ms or (time.blind and self.read_at_ms < self.lease_end_ms and not self.draining)

    @property
    def read_next_ms(self) -> int:
        """When the store should be asked whether the lease was renewed."""
        if self.draining or self.read_at_ms >= self.lease_end_ms:
            return FOREVER_MS  # coming back moves the registry's version
        ahead_ms = min(READ_AHEAD_MS, self.ttl_ms // 4)
        return max(self.lease_end_ms - ahead_ms, self.read_at_ms + READ_AGAIN_MS)

    def fault(self, now: int, time: StoreTime) -> Judgement | None:
        """What speaks against sending it work as long as others are healthy; None: nothing."""
        reach = self.reach
        if reach.pause_ms:
            return Judgement(Health.SUSPECT, "requests do not get through", time.wall(reach.since_ms))
        if reach.rest_ms:
            why = f"its last {max(reach.row, FAILED_ROW)} requests got no answer"
            return Judgement(Health.SUSPECT, why, time.wall(reach.failing_since_ms))
        for kind, check in self.checks.items():
            if check.failing:
                name = "its probe fails" if kind == PROBE else f"its canary of {kind.partition(':')[2]} fails"
                return Judgement(Health.SUSPECT, f"{name}: {check.why}", check.since_ms)
        if self.flapping is not None and now < self.flapping[2]:
            return Judgement(Health.SUSPECT, self.flapping[0], self.flapping[1])
        return None

    def judge(self, now: int, time: StoreTime) -> Judgement:
        if not self.alive(now, time):
            why = f"no {'heartbeat' if self.url else 'poll'} for its ttl of {self.ttl_ms} ms"
            if self.drain is not None:
                why += f", and it was draining since {to_rfc3339(self.drain.since_ms)}"
            return Judgement(Health.OFFLINE, why, time.wall(self.lease_end_ms))
        if self.drain is not None:
            return Judgement(Health.DRAINING, self.drain.why, self.drain.since_ms)
        if self.draining:
            return Judgement(Health.DRAINING, "it was removed and finishes what it has", self.since_ms)
        fault = self.fault(now, time)
        if fault is not None:
            return fault
        why = "its lease is kept up" if self.url else "it asks for work"
        if self.id == TARGET:
            probed = self.checks.get(PROBE)
            answers = probed is not None or self.reach.heard_ms
            why = f"the target of its registration, {'and it answers' if answers else 'not heard yet'}"
        elif self.spared is not None:
            begin, end = (to_rfc3339(ms) for ms in self.spared)
            why = f"alive when the registry was away from {begin} to {end}; it has its whole ttl to be heard again"
        return Judgement(Health.HEALTHY, why, self.since_ms)


def flapping(arrivals_ms: Sequence[int], policy: Flapping, time: StoreTime) -> tuple[str, int, int] | None:
    """As `Instance.flapping`: too many arrivals, and it did not stay for `within_ms` since."""
    count = policy.arrivals
    if count < 2:  # noqa: PLR2004 - once is no coming and going
        return None
    began_ms = 0
    for first, last in zip(arrivals_ms, arrivals_ms[count - 1 :], strict=False):
        if last - first > policy.within_ms:
            began_ms = 0
        elif not began_ms:
            began_ms = last
    if not began_ms:
        return None
    why = f"it came and went {count} times or more within {policy.within_ms} ms"
    return why, began_ms, time.local(arrivals_ms[-1] + policy.within_ms)
