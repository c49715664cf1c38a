"""What changed in the registry, step by step, and for a watcher in the part of it that one namespace sees.

One log per gateway numbers the changes that it sees; a watcher that comes back with its cursor goes on behind it, and
is told so when that is no longer possible. Health moves without the registry's version (a lease that ends, a breaker
that opens), so somebody looks again every second or so; the more endpoints, the less often. Pure over both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from mesh.clock import monotonic_s
from mesh.ids import short_id
from registry.catalog import Catalog, Endpoint
from registry.health import BreakerState, Health
from registry.records import Filters
from registry.routing import Router

LOOK_S: Final = 1.0
LOOKED_AT_PER_S: Final = 1_000
CHANGES_MAX: Final = 10_000
"""Changes that a watcher may have missed and still go on."""


class _Seen(NamedTuple):
    version: int
    paused: bool
    health: Health
    breaker: BreakerState
    instances: tuple[tuple[str, Health], ...]
    shares: bytes


class _Change(NamedTuple):
    """`before`: the endpoint that had the name until then, which says who could see it."""

    number: int
    name: str
    before: Endpoint | None


class Changes(NamedTuple):
    """Since a cursor: endpoints that are new or different, names that are gone from view, and the cursor behind them.

    `reset`: the cursor could not be gone on from, so this is all there is, and what it does not name is gone.
    """

    changed: list[Endpoint]
    removed: list[str]
    cursor: str
    reset: bool


class Log:
    """The changes that one gateway sees, numbered from 1. A restart begins another log."""

    def __init__(self, catalog: Catalog, router: Router) -> None:
        self._catalog = catalog
        self._router = router
        self._id = short_id("w")
        self._number = 0
        self._seen: dict[str, tuple[Endpoint, _Seen]] = {}
        self._changes: deque[_Change] = deque(maxlen=CHANGES_MAX)
        self._looked_s = 0.0
        self._version = -2

    @property
    def pace_s(self) -> float:
        """How often it is worth while to look when nothing moved the registry's version."""
        return max(LOOK_S, len(self._seen) / LOOKED_AT_PER_S)

    def look(self) -> None:
        """Note what changed since the last look, if that was long enough ago or the registry moved."""
        now_s = monotonic_s()
        if self._version == self._catalog.version and now_s - self._looked_s < self.pace_s / 2:
            return
        self._version, self._looked_s = self._catalog.version, now_s
        seen = {one.name: (one, self._state(one)) for one in self._catalog.endpoints}
        for name, (endpoint, state) in seen.items():
            before = self._seen.get(name)
            if before is None or before[1] != state or before[0].id != endpoint.id:
                self._note(name, before)
        for name, before in self._seen.items():
            if name not in seen:
                self._note(name, before)
        self._seen = seen

    def _note(self, name: str, before: tuple[Endpoint, _Seen] | None) -> None:
        self._number += 1
        self._changes.append(_Change(self._number, name, None if before is None else before[0]))

    def _state(self, endpoint: Endpoint) -> _Seen:
        view = self._router.view(endpoint)
        instances = tuple((one.id, judged.health) for one, judged in view.instances)
        return _Seen(
            endpoint.version, endpoint.paused, view.judgement.health, view.breaker, instances, endpoint.versions
        )

    @property
    def cursor(self) -> str:
        return f"{self._id}.{self._number}"

    def since(self, cursor: str) -> Mapping[str, Endpoint | None] | None:
        """Names that changed behind `cursor`, each with the endpoint that had it then; None: that is not known here."""
        log, _, text = cursor.partition(".")
        if log != self._id or not text.isdecimal() or len(text) > len(str(self._number)):
            return None
        number = int(text)
        oldest = self._changes[0].number if self._changes else self._number + 1
        if not oldest - 1 <= number <= self._number:
            return None
        names: dict[str, Endpoint | None] = {}
        for change in reversed(self._changes):
            if change.number <= number:
                break
            names[change.name] = change.before
        return names

    def all(self) -> list[Endpoint]:
        """All endpoints as last looked at."""
        return [endpoint for endpoint, _ in self._seen.values()]

    def present(self, name: str) -> Endpoint | None:
        """The endpoint of that name as last looked at."""
        found = self._seen.get(name)
        return found[0] if found is not None else None

    async def wait(self) -> None:
        """Until it is worth while to look again."""
        await self._catalog.moved(self.pace_s)


class Watch:
    """One watcher; `cursor` "" for a new one. The first `look` gives all unless the cursor can be gone on from."""

    def __init__(self, log: Log, namespace: str, filters: Filters, cursor: str = "") -> None:
        self._log = log
        self._namespace = namespace
        self._filters = filters
        self._cursor = cursor

    def look(self) -> Changes:
        """What changed since the last look; moves on."""
        self._log.look()
        names = self._log.since(self._cursor) if self._cursor else None
        reset = names is None and bool(self._cursor)
        if names is None:
            names = dict[str, Endpoint | None]()
            changed = [one for one in self._log.all() if self._sees(one)]
        else:
            changed = [one for name in names if (one := self._log.present(name)) is not None and self._sees(one)]
        told = {one.name for one in changed}
        removed = [name for name, one in names.items() if name not in told and self._sees(one)]
        self._cursor = self._log.cursor
        return Changes(sorted(changed, key=lambda one: one.name), sorted(removed), self._cursor, reset)

    def _sees(self, endpoint: Endpoint | None) -> bool:
        return endpoint is not None and endpoint.callable_by(self._namespace) and self._filters.match(endpoint)

    async def wait(self) -> None:
        """Until it is worth while to look again."""
        await self._log.wait()
