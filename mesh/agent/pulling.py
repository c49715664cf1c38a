"""The pull side of an agent, put together: its entry in the registry, the runs it fetches, its lanes to gateways."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from socket import gethostname
from typing import Any, Final

from mesh.agent.arrivals import Arrivals
from mesh.agent.fetched import Fetched
from mesh.agent.host import Host
from mesh.agent.outbox import Outbox
from mesh.agent.puller import Puller
from mesh.agent.registration import Registration
from mesh.agent.routes import Routes
from mesh.agent.work import Work
from mesh.ids import short_id
from mesh.pool import Pool, Target

_ODD: Final = re.compile("[^A-Za-z0-9.]+")
_HOST_CHARS_MAX: Final = 64


class Pulling:
    """One instance that asks for its work. `declared`: fields of the endpoint; None: somebody else declares it."""

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        host: Host,
        work: Work,
        routes: Routes,
        *,
        key: str | None,
        endpoint: str,
        instance: str | None,
        version: str | None,
        declared: dict[str, Any] | None,
        lease_ms: int,
        slots: int,
        arrivals: Arrivals,
        force: bool,
        refused: Callable[[str], None] | None,
    ) -> None:
        if not instance:
            machine = _ODD.sub("-", gethostname())[:_HOST_CHARS_MAX].strip("-.")
            instance = f"{machine or 'agent'}-{short_id('p')}"
        services = routes.describe()
        self._registration = Registration(
            pool,
            gateways,
            key=key,
            endpoint=endpoint,
            declared=None if declared is None else {"services": services, "target": {"kind": "pull"}, **declared},
            instance=instance,
            lease=None,
            force=force,
            refused=refused,
        )
        offered: dict[str, Any] = {} if version is None else {"version": version}
        if declared is None:
            # Others may serve what this agent does not.
            offered["services"] = [one["name"] for one in services]
        outbox = Outbox()
        self._puller = Puller(
            pool,
            gateways,
            Fetched(host, work, routes, outbox, slots, arrivals),
            outbox,
            endpoint=endpoint,
            instance=instance,
            key=key,
            lease_ms=lease_ms,
            offered=offered,
            declared=self._registration.known,
            redeclare=self._registration.redeclare,
        )

    def begin(self) -> None:
        """Declare the endpoint and ask for work, in the background."""
        self._registration.begin()
        self._puller.begin()

    async def known(self) -> None:
        """Wait until a gateway has taken a poll."""
        await self._puller.known.wait()

    async def leave(self) -> None:
        """Ask for no more work; answers still go out."""
        await self._puller.leave()
        await self._registration.leave()

    async def end(self) -> None:
        """Let the last answers out."""
        await self._puller.end()
