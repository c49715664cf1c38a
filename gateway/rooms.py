"""Every ordinary route of a gateway, in the order in which they are asked. The hot ones are found by app.py itself."""

from __future__ import annotations

from typing import Final

from gateway import batches, contracts, declared, declared_tasks, endpoints, pages, queues, routes, streams, versions
from gateway.pull import declared as declared_pull
from gateway.schedules import surface as schedules

_REGISTRY: Final = (endpoints, versions, contracts, queues, pages)
ROUTERS: Final = tuple(
    room.router for room in (routes, streams, batches, schedules, declared, declared_tasks, declared_pull, *_REGISTRY)
)
