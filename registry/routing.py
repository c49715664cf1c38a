"""Which instance takes the next request of an endpoint, or why none can.

`admit` and `settle` come in pairs: every admitted instance is settled with exactly once, whatever happened; the probe
of a breaker is out in between. Sees the world through rosters (instances.py) and what callers settle; sends nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

from mesh.clock import to_rfc3339
from mesh.words import counted
from registry.catalog import Catalog, Endpoint
from registry.choice import CANARY, NOBODY, VERSION, Rotation, pinned, rotation
from registry.health import Breaker, BreakerState, Health, Judgement, Outcome
from registry.instances import FOREVER_MS, Instance, Roster, StoreTime

__all__ = ["Admitted", "Outcome", "Router", "View"]

Admitted: TypeAlias = Instance
CAPACITY: Final = 1 << 20
"""What `capacity` says when nothing here limits an endpoint; the store's own limits still hold."""
LINES_MAX: Final = 20_000
_OK: Final = Outcome.OK
_FAILED: Final = Outcome.FAILED
"""Looked up once: CPython 3.11 is slow to find the member of an enum."""
PINS_MAX: Final = 256
"""Pins of one endpoint whose choice is kept until its roster changes."""


class View(NamedTuple):
    """An endpoint as routing sees it, for people.

    `breaker` state; `since_ms` Unix time when it opened or was closed last, 0 for never; `open_ms` its present rest, 0
    while closed; `retry_at_ms` Unix time of the next probe, or 0.
    """

    judgement: Judgement
    instances: list[tuple[Instance, Judgement]]
    breaker: BreakerState
    failures: int
    since_ms: int
    open_ms: int
    retry_at_ms: int


class _Line:
    """Routing state of one endpoint: the breaker stays, the rest is derived from a roster until `fresh_until_ms`."""

    __slots__ = ("breaker", "endpoint", "fresh_until_ms", "live", "pinned", "reason", "roster", "rotation")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.roster: Roster | None = None
        self.endpoint: Endpoint | None = None
        self.live: list[Instance] = []
        self.rotation = NOBODY
        self.pinned: dict[str, Rotation] = {}
        self.reason = ""
        self.fresh_until_ms = 0

    def derive(self, endpoint: Endpoint, roster: Roster, now: int, time: StoreTime) -> None:
        if self.breaker.failures and self.roster is not None and _arrived(self.roster, roster, now):
            self.breaker.reset(now)
        live = [one for one in roster.instances if one.url and not one.draining and one.alive(now, time)]
        usable = [one for one in live if one.reach.usable(now)]
        self.roster, self.endpoint, self.live, self.pinned = roster, endpoint, live, {}
        self.rotation = rotation(usable, endpoint.shares, now, time)
        self.reason = "" if self.rotation.pools else "unreachable" if live and not usable else "no_instance"
        ends = [one.live_until_ms for one in live]
        ends += [one.reach.until_ms for one in live if not one.reach.usable(now)]
        ends += [one.reach.rest_until_ms for one in live if one.reach.resting(now)]
        ends += [one.flapping[2] for one in live if one.flapping is not None and now < one.flapping[2]]
        self.fresh_until_ms = min(ends, default=FOREVER_MS)

    def pool(self, pin: str, now: int, time: StoreTime) -> tuple[Rotation, str]:
        """Who may be chosen for work with this pin ("" for most), or why nobody."""
        if not pin:
            return self.rotation, self.reason
        allowed = pinned(self.live, pin)
        found = self.pinned.get(pin)
        if found is None:
            # A canary finds out whether an instance works, so it goes there whatever is thought of it.
            usable = allowed if pin[0] == CANARY else [one for one in allowed if one.reach.usable(now)]
            found = rotation(usable, {}, now, time)
            if len(self.pinned) < PINS_MAX:
                self.pinned[pin] = found
        return found, "" if found.pools else "unreachable" if allowed else "no_version"


class Router:
    """One per gateway; what it learns of calls is its own, what it knows of instances is the catalog's."""

    def __init__(self, catalog: Catalog) -> None:
        self.time = catalog.time
        self._instances = catalog.instances
        self._stale = catalog.stale
        self._lines: dict[str, _Line] = {}

    def admit(self, endpoint: Endpoint, pin: str = "", *, may_probe: bool = True) -> Admitted | str:
        """An instance for one request, to be settled with; or `no_instance`, `unreachable`, `breaker`, `no_version`.

        `pin`: as in mesh/store/layout.py. Not `may_probe`: while one request is to find out whether the endpoint is
        back, this one is refused.
        """
        now = self.time.now()
        line = self._line(endpoint, now)
        choice, reason = line.pool(pin, now, self.time)
        if reason:
            return reason
        if pin[:1] == CANARY:
            chosen = replace(choice.choose(), canary=True)
            chosen.reach.in_flight += 1
            return chosen
        probe = 0
        if not line.breaker.closed:
            if not line.breaker.open_for(endpoint.bounds.breaker, now):
                return "breaker"
            if not may_probe and line.breaker.state(endpoint.bounds.breaker, now) is not BreakerState.CLOSED:
                return "breaker"
            probe = line.breaker.take_probe()
        chosen = choice.choose()
        chosen.reach.in_flight += 1
        return replace(chosen, probe=probe) if probe else chosen

    def choose(self, endpoint: Endpoint) -> Instance | None:
        """Who would be admitted now; nothing is counted and nothing need be settled."""
        now = self.time.now()
        line = self._line(endpoint, now)
        if line.reason or not line.breaker.open_for(endpoint.bounds.breaker, now):
            return None
        return line.rotation.choose()

    def settle(self, endpoint: Endpoint, admitted: Admitted, outcome: Outcome) -> None:
        """What became of an admitted request; exactly once."""
        now = self.time.now()
        reach = admitted.reach
        reach.in_flight -= 1
        line = self._lines.get(endpoint.id)
        if outcome is _OK:
            if reach.answered(now) and line is not None:
                line.fresh_until_ms = 0
        elif outcome is Outcome.UNREACHABLE:
            reach.lost(now)
            if line is not None:
                line.fresh_until_ms = 0
        elif outcome is _FAILED:
            paused = reach.pause_ms
            reach.failed(now)
            if line is not None and (paused or reach.rest_ms):
                line.fresh_until_ms = 0
        if line is not None and not admitted.canary:
            if outcome is _FAILED and not _present(self._instances.roster(endpoint.id), admitted):
                outcome = Outcome.NEUTRAL
            line.breaker.settle(endpoint.bounds.breaker, admitted.probe, outcome, now)

    def probing(self, endpoint: Endpoint) -> bool:
        """Whether the next request admitted is a probe, which should be work that has failed least."""
        now = self.time.now()
        return self._line(endpoint, now).breaker.state(endpoint.bounds.breaker, now) is BreakerState.HALF_OPEN

    def hindrance(self, endpoint: Endpoint, pin: str = "") -> str:
        """Why `admit` would refuse now, or ""; takes nothing."""
        now = self.time.now()
        line = self._line(endpoint, now)
        _, reason = line.pool(pin, now, self.time)
        if reason:
            return reason
        return "" if line.breaker.open_for(endpoint.bounds.breaker, now) else "breaker"

    def pins(self, endpoint: Endpoint) -> list[str]:
        """Pins that some live instance satisfies."""
        if endpoint.pulls:
            return sorted({VERSION + one.version for one in self._asking(endpoint) if one.version})
        live = self._line(endpoint, self.time.now()).live
        versions = {VERSION + one.version for one in live if one.version}
        return [*sorted(versions), *(CANARY + one.id for one in live)]

    def capacity(self, endpoint: Endpoint, pin: str = "") -> int:
        """How many may be admitted now: 0, 1 for a probe, else CAPACITY."""
        now = self.time.now()
        line = self._line(endpoint, now)
        if line.pool(pin, now, self.time)[1] or not line.breaker.open_for(endpoint.bounds.breaker, now):
            return 0
        return CAPACITY if line.breaker.state(endpoint.bounds.breaker, now) is BreakerState.CLOSED else 1

    def attended(self, endpoint: Endpoint, pin: str = "") -> bool:
        """Whether somebody whom the pin allows asks for the work of an endpoint of kind pull."""
        asking = self._asking(endpoint)
        return bool(pinned(asking, pin) if pin else asking)

    def _asking(self, endpoint: Endpoint) -> list[Instance]:
        now = self.time.now()
        roster = self._instances.roster(endpoint.id)
        return [one for one in roster.instances if not one.draining and one.alive(now, self.time)]

    def roster(self, endpoint_id: str) -> Roster:
        """Who is there; another object whenever anything of that changed."""
        return self._instances.roster(endpoint_id)

    def every(self, endpoint: Endpoint) -> list[Instance]:
        """All that may hold work of the endpoint, draining ones too; those that answer first."""
        now = self.time.now()
        live = [one for one in self._instances.roster(endpoint.id).instances if one.url and one.alive(now, self.time)]
        return sorted(live, key=lambda one: one.reach.pause_ms)

    def view(self, endpoint: Endpoint) -> View:
        """Health of the endpoint and of each instance, with why and since when."""
        now = self.time.now()
        line = self._line(endpoint, now)
        state = line.breaker.state(endpoint.bounds.breaker, now)
        instances = [(one, one.judge(now, self.time)) for one in self._instances.roster(endpoint.id).instances]
        retry_at_ms = self.time.wall(line.breaker.until_ms) if state is BreakerState.OPEN else 0
        judgement = self._judge(endpoint, [one for _, one in instances], line.breaker, state, retry_at_ms)
        breaker = line.breaker
        since_ms = self.time.wall(breaker.since_ms) if breaker.since_ms else 0
        return View(judgement, instances, state, breaker.failures, since_ms, breaker.open_ms, retry_at_ms)

    def _judge(
        self, endpoint: Endpoint, all_: list[Judgement], breaker: Breaker, state: BreakerState, retry_at_ms: int
    ) -> Judgement:
        by_health: dict[Health, list[Judgement]] = {health: [] for health in Health}
        for one in all_:
            by_health[one.health].append(one)
        healthy, suspect, offline, draining = by_health.values()
        if not all_:
            why = "no agent has asked for work" if endpoint.pulls else "no instance has registered"
            return Judgement(Health.OFFLINE, why, endpoint.created_at_ms)
        if not healthy and not suspect:
            if draining:
                return Judgement(Health.DRAINING, draining[-1].why, max(one.since_ms for one in draining))
            last = max(offline, key=lambda one: one.since_ms)
            return Judgement(Health.OFFLINE, f"no instance is alive; the last one: {last.why}", last.since_ms)
        if state is not BreakerState.CLOSED:
            then = f"the next probe is at {to_rfc3339(retry_at_ms)}" if retry_at_ms else "one probe decides"
            why = f"the breaker is open after {counted(breaker.failures, 'failure')} in a row; {then}"
            return Judgement(Health.SUSPECT, why, self.time.wall(breaker.since_ms))
        if healthy:
            of = len(healthy) + len(suspect)
            return Judgement(Health.HEALTHY, f"{len(healthy)} of {of} instances", min(j.since_ms for j in healthy))
        return Judgement(Health.SUSPECT, suspect[0].why, min(one.since_ms for one in suspect))

    def _line(self, endpoint: Endpoint, now: int) -> _Line:
        line = self._lines.get(endpoint.id)
        if line is None:
            if len(self._lines) >= LINES_MAX:
                self._lines.clear()
            line = self._lines[endpoint.id] = _Line()
        roster = self._instances.roster(endpoint.id)
        if line.roster is not roster or line.endpoint is not endpoint or now >= line.fresh_until_ms:
            line.derive(endpoint, roster, now, self.time)
            if roster.read_next_ms <= now:
                self._stale()
        return line


def _present(roster: Roster, admitted: Instance) -> bool:
    """Whether the instance that a request was sent to is still there, and has not registered anew since."""
    now = roster.get(admitted.id)
    return now is not None and now.since_ms == admitted.since_ms


def _arrived(before: Roster, after: Roster, now: int) -> bool:
    """Whether somebody takes work now who did not before, or registered anew since."""
    known = {(one.id, one.since_ms) for one in before.instances if not one.draining}
    return any(
        (one.id, one.since_ms) not in known for one in after.instances if not one.draining and now < one.live_until_ms
    )
