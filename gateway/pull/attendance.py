"""Instances that poll, as the registry shows them: they are there for as long as they ask for work.

One write when an instance comes or changes, then one every third of its lease while it polls here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError, NotFound
from registry.instances import ATTENDING_MS

if TYPE_CHECKING:
    from registry.catalog import Catalog, Endpoint

RENEW_S: Final = ATTENDING_MS / 3000
LOOK_S: Final = 1.0
INSTANCES_MAX: Final = 20_000

_log = logging.getLogger(__name__)


class _Instance:
    __slots__ = ("endpoint", "polled_s", "renewed_s", "version", "waiting")

    def __init__(self, endpoint: Endpoint, version: str) -> None:
        self.endpoint = endpoint
        self.version = version
        self.waiting = 0
        self.polled_s = self.renewed_s = monotonic_s()


class Attendance:
    """All polling instances of this gateway. `run` keeps their leases up."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._instances: dict[tuple[str, str], _Instance] = {}

    async def came(self, endpoint: Endpoint, instance: str, version: str, *, fresh: bool) -> bool:
        """It begins a poll, to be ended with `went`; False: it drains, or was removed, and gets nothing.

        `fresh`: the process has just started; who was removed under its name was another.

        Raises NotFound (the endpoint is gone), TooMany.
        """
        found = self._instances.get((endpoint.id, instance))
        known = self._catalog.instances.roster(endpoint.id).get(instance)
        drains = known is not None and known.draining
        if not fresh and drains and self._draining(endpoint, instance):
            self._instances.pop((endpoint.id, instance), None)
            await self._stay(endpoint, instance, version)
            return False
        # One that drains whose lease is over may still stand in the books here: it is looked at as one that comes anew.
        if found is None or fresh or drains or found.version != version:
            await self._catalog.attend(endpoint, instance, version, fresh=fresh)
            if self._draining(endpoint, instance):
                return False  # what was told to drain does so after a silence too, and the version in any process
            if len(self._instances) >= INSTANCES_MAX:
                del self._instances[next(iter(self._instances))]
            found = self._instances.setdefault((endpoint.id, instance), _Instance(endpoint, version))
            found.version = version
        found.waiting += 1
        return True

    def went(self, endpoint: Endpoint, instance: str) -> None:
        """Its poll is answered, or it has hung up."""
        found = self._instances.get((endpoint.id, instance))
        if found is not None:
            found.waiting -= 1
            found.polled_s = monotonic_s()

    async def _stay(self, endpoint: Endpoint, instance: str, version: str) -> None:
        """What was told to drain, and goes on asking, is there. One that left by itself is not."""
        known = self._catalog.instances.roster(endpoint.id).get(instance)
        if known is None or known.drain is None or not known.drain.told:
            return
        if known.lease_end_ms - self._catalog.time.now() < ATTENDING_MS - RENEW_S * 1000:
            await self._catalog.attend(endpoint, instance, version)

    def _draining(self, endpoint: Endpoint, instance: str) -> bool:
        time = self._catalog.time
        known = self._catalog.instances.roster(endpoint.id).get(instance)
        return known is not None and known.draining and time.now() < known.live_until_ms

    async def renew(self) -> None:
        """Keep up the leases of those that polled since the last time; forget those that did not for long."""
        now_s = monotonic_s()
        for key, one in list(self._instances.items()):
            if not one.waiting and now_s - one.polled_s > ATTENDING_MS / 1000:
                self._instances.pop(key, None)
            elif one.waiting or one.polled_s > one.renewed_s:
                known = self._catalog.instances.roster(one.endpoint.id).get(key[1])
                # One that drains is kept up by its own asking alone (`came`), also once its lease is over.
                if now_s - one.renewed_s >= RENEW_S and not (known is not None and known.draining):
                    one.renewed_s = now_s
                    try:
                        await self._catalog.attend(one.endpoint, key[1], one.version)
                    except NotFound:
                        self._instances.pop(key, None)

    async def run(self) -> None:
        """`renew` for as long as the gateway lives."""
        while True:
            await sleep(LOOK_S)
            try:
                await self.renew()
            except MeshError as error:
                _log.warning("polling instances are not kept up: %s", error)
            except Exception:  # noqa: BLE001 - they would all look gone
                _log.exception("polling instances are not kept up")
