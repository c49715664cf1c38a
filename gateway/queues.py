"""`GET /v1/endpoints/{name}/queue`: who waits at an endpoint and why, its limits, its breaker. HTTP in, thin.

The same numbers go to /metrics (`families`) and the command line. A caller sees the sums and its part, the owner all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from gateway.declared import schema
from mesh.clock import to_rfc3339
from mesh.errors import MeshError
from registry.health import BreakerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from gateway.app import Mesh
    from gateway.auth import Principal
    from mesh.store.queues import Queue, Queued
    from registry.endpoint import Endpoint
    from registry.instances import Instance

router = APIRouter(prefix="/v1/endpoints", tags=["registry"])

SERIES_MAX: Final = 20_000
"""Samples by namespace in one exposition; the sums of endpoints are always there."""
BATCH: Final = 64
ANSWER_S: Final = 0.5
"""Longest that an exposition waits for the store, each time."""
_STATES: Final = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
_encode: Final = msgspec.json.Encoder().encode


@router.get(
    "/{name}/queue",
    summary="Who waits, and why",
    responses={200: {"content": schema("Queue")}, 404: {"description": "Not there, or another namespace's"}},
)
async def get_queue(request: Request, name: str) -> Response:
    """Depth, oldest, limits and breakers now; by namespace to the owner, to a caller its own part."""
    mesh: Mesh = request.app.state.mesh
    namespace = mesh.auth.authenticate(request.scope["headers"]).namespace
    endpoint = await mesh.catalog.locate(name, namespace)
    at_ms, (queue,) = await mesh.catalog_store.queues([endpoint.id])
    body = queue_record(mesh, endpoint, queue, at_ms, namespace)
    return Response(_encode(body), 200, {"cache-control": "no-store"}, "application/json")


def queue_record(mesh: Mesh, endpoint: Endpoint, queue: Queue, at_ms: int, viewer: str) -> dict[str, Any]:
    """One endpoint's queue as `viewer` may see it."""
    policy, view = endpoint.policy, mesh.router.view(endpoint)
    own = viewer == endpoint.owner
    shown = {one.namespace: one for one in queue.namespaces if own or one.namespace == viewer}
    named = [name for name in policy.limits if own or name in ("*", viewer)]
    breaker: dict[str, Any] = {"state": view.breaker, "failures": view.failures}
    if view.retry_at_ms:
        breaker["retry_at"] = to_rfc3339(view.retry_at_ms)
    return {
        "endpoint": endpoint.name,
        "at": to_rfc3339(at_ms),
        "waiting": queue.waiting,
        "oldest_waiting_ms": max(at_ms - queue.oldest_ms, 0) if queue.oldest_ms else 0,
        "running": queue.running,
        "paused": endpoint.paused,
        "limits": {
            "max_concurrency": policy.max_concurrency,
            "rate_per_s": policy.rate_per_s,
            "max_waiting": policy.max_waiting,
            "max_delayed": policy.max_delayed,
            "namespaces": {name: policy.share(name).model_dump() for name in named},
        },
        "namespaces": [_namespace(endpoint, one, at_ms) for _, one in sorted(shown.items())],
        "breaker": breaker,
        "instances": [_instance(mesh, one) for one, _ in view.instances],
    }


def _namespace(endpoint: Endpoint, one: Queued, at_ms: int) -> dict[str, Any]:
    return {
        "namespace": one.namespace,
        "waiting": one.waiting,
        "next_waiting_ms": max(at_ms - one.next_ms, 0) if one.next_ms else 0,
        "running": one.running,
        "at_own_limit": one.parked,
        **endpoint.policy.share(one.namespace).model_dump(),
    }


def _instance(mesh: Mesh, instance: Instance) -> dict[str, Any]:
    now, reach = mesh.router.time.now(), instance.reach
    state = BreakerState.CLOSED
    if reach.pause_ms:
        state = BreakerState.HALF_OPEN if reach.usable(now) else BreakerState.OPEN
    record: dict[str, Any] = {"id": instance.id, "breaker": state, "in_flight": reach.in_flight}
    if state is BreakerState.OPEN:
        record["retry_at"] = to_rfc3339(mesh.router.time.wall(reach.until_ms))
    return record


async def families(mesh: Mesh, viewer: Principal | None) -> list[Metric]:
    """Queues and breakers of all endpoints, for /metrics; nothing of queues while the store cannot be asked.

    Names of those that `viewer` may see: what other teams registered is not for all who may read figures.
    """
    endpoints = mesh.catalog.all()
    known = [one for one in endpoints if viewer is not None and (viewer.admin or one.callable_by(viewer.namespace))]
    return [*await _queues(mesh, endpoints), _breakers(mesh, endpoints), *_names(known)]


def _names(endpoints: Sequence[Endpoint]) -> Iterator[InfoMetricFamily]:
    if endpoints:
        family = InfoMetricFamily("mesh_endpoint", "Endpoints by id, to join names with", labels=["endpoint"])
        for one in endpoints:
            family.add_metric([one.id], {"name": one.name, "owner": one.owner})
        yield family


async def _queues(mesh: Mesh, endpoints: Sequence[Endpoint]) -> list[GaugeMetricFamily]:
    waiting = GaugeMetricFamily(
        "mesh_endpoint_waiting", "Operations in line, by calling namespace", labels=["endpoint", "namespace"]
    )
    running = GaugeMetricFamily(
        "mesh_endpoint_running", "Operations that run where a limit counts them", labels=["endpoint", "namespace"]
    )
    oldest = GaugeMetricFamily(
        "mesh_endpoint_oldest_waiting_seconds", "Age of what waits longest", labels=["endpoint"]
    )
    series = 0
    try:
        for begin in range(0, len(endpoints), BATCH):
            some = endpoints[begin : begin + BATCH]
            # A store that hangs must not take this process's own figures with it.
            async with asyncio.timeout(ANSWER_S):
                at_ms, queues = await mesh.catalog_store.queues([one.id for one in some])
            for endpoint, queue in zip(some, queues, strict=True):
                oldest.add_metric([endpoint.id], (at_ms - queue.oldest_ms) / 1000 if queue.oldest_ms else 0)
                for one in queue.namespaces[: max(SERIES_MAX - series, 0)]:
                    waiting.add_metric([endpoint.id, one.namespace], one.waiting)
                    running.add_metric([endpoint.id, one.namespace], one.running)
                    series += 1
    except (MeshError, TimeoutError):
        return []  # unknown is not zero
    return [waiting, running, oldest]


def _breakers(mesh: Mesh, endpoints: Sequence[Endpoint]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "mesh_endpoint_breaker", "0 closed, 1 half open, 2 open, as this gateway sees it", labels=["endpoint"]
    )
    for endpoint in endpoints:
        family.add_metric([endpoint.id], _STATES.index(mesh.router.view(endpoint).breaker))
    return family
