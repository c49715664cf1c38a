"""What changed in the part of the registry that one namespace sees, step by step. Pure over catalog and router.

Health moves without the registry's version (a lease that ends, a breaker that opens), so a watcher looks again every
second or so; the more endpoints, the less often.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from registry.catalog import Catalog, Endpoint
from registry.health import BreakerState, Health
from registry.records import Filters
from registry.routing import Router

LOOK_S: Final = 1.0
LOOKED_AT_PER_S: Final = 1_000


class _Seen(NamedTuple):
    version: int
    paused: bool
    health: Health
    breaker: BreakerState
    instances: tuple[tuple[str, Health], ...]


class Changes(NamedTuple):
    """Since the last look: endpoints that are new or different, names that are gone from view."""

    changed: list[Endpoint]
    removed: list[str]


class Watch:
    """One watcher. The first `look` gives everything."""

    def __init__(self, catalog: Catalog, router: Router, namespace: str, filters: Filters) -> None:
        self._catalog = catalog
        self._router = router
        self._namespace = namespace
        self._filters = filters
        self._seen: dict[str, _Seen] = {}

    def look(self) -> Changes:
        """What changed since the last look; moves on."""
        seen: dict[str, _Seen] = {}
        changed: list[Endpoint] = []
        for endpoint in self._catalog.visible(self._namespace):
            if self._filters.match(endpoint):
                now = seen[endpoint.name] = self._state(endpoint)
                if self._seen.get(endpoint.name) != now:
                    changed.append(endpoint)
        removed = [name for name in self._seen if name not in seen]
        self._seen = seen
        return Changes(changed, removed)

    async def wait(self) -> None:
        """Until it is worth while to look again."""
        await self._catalog.moved(max(LOOK_S, len(self._seen) / LOOKED_AT_PER_S))

    def _state(self, endpoint: Endpoint) -> _Seen:
        view = self._router.view(endpoint)
        instances = tuple((one.id, judged.health) for one, judged in view.instances)
        return _Seen(endpoint.version, endpoint.paused, view.judgement.health, view.breaker, instances)
