"""Versions of an endpoint and drains over HTTP: who runs which, how they share the work, and who gets none any more.

HTTP in, thin: every route is one call of the catalog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import Field

from gateway import endpoints
from gateway.outcomes import encode_json
from registry.policy import Part
from registry.spec import WEIGHT_MAX
from registry.versions import version_records

if TYPE_CHECKING:
    from gateway.app import Mesh
    from registry.endpoint import Endpoint

router: Final = APIRouter(prefix="/v1/endpoints", tags=["registry"], route_class=endpoints.router.route_class)

_GONE: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "Not there, or another namespace's"}}
_OWNERS: Final = _GONE | {403: {"description": "`not_owner`: you may call it, and only its owner may do this"}}
_DEFAULT: Final = -1


class ShareSpec(Part):
    """Body of `PUT .../versions/{version}`: all of it; what is left out is the default."""

    weight: int | None = Field(
        default=None, ge=0, le=WEIGHT_MAX * 1_000,
        description="relative to the other versions; left out: what its instances weigh together; 0: pinned work only",
    )  # fmt: skip
    percent: float | None = Field(
        default=None, ge=0, le=100, description="of all work that is not pinned: a canary share"
    )


def _mesh(request: Request) -> Mesh:
    return request.app.state.mesh


async def _reply(request: Request, endpoint: Endpoint) -> Response:
    mesh = _mesh(request)
    await mesh.catalog.instances.reread([endpoint.id])
    running, pinned = await mesh.catalog.at_work(endpoint.id)
    own = request.state.namespace == endpoint.owner
    body = {"endpoint": endpoint.name, "items": version_records(endpoint, mesh.router, running, pinned, own=own)}
    return Response(encode_json(body), 200, {"cache-control": "no-store"}, "application/json")


@router.get("/{name}/versions", summary="Who runs which version", responses=_GONE)
async def list_versions(request: Request, name: str) -> Response:
    """Each version with its share, its instances, what runs there and what waits for it."""
    return await _reply(request, await _mesh(request).catalog.locate(name, request.state.namespace))


@router.put("/{name}/versions/{version:path}", summary="How a version shares in the work", responses=_OWNERS)
async def put_version(request: Request, name: str, version: str, share: ShareSpec) -> Response:
    """Weights divide the work among versions; `percent` takes a fixed part for one. Any gateway follows in a moment."""
    weight = _DEFAULT if share.weight is None else share.weight
    percent = _DEFAULT if share.percent is None else share.percent
    catalog, namespace = _mesh(request).catalog, request.state.namespace
    return await _reply(request, await catalog.share(name, namespace, version, weight=weight, percent=percent))


@router.post("/{name}/versions/{version:path}/drain", summary="No new work for a version", responses=_OWNERS)
async def drain_version(request: Request, name: str, version: str) -> Response:
    """Its later instances drain too. What they have they may finish; `running` and `in_flight` say what is left."""
    catalog, namespace = _mesh(request).catalog, request.state.namespace
    return await _reply(request, await catalog.share(name, namespace, version, draining=True))


@router.post("/{name}/versions/{version:path}/resume", summary="Work for a drained version again", responses=_OWNERS)
async def resume_version(request: Request, name: str, version: str) -> Response:
    """The opposite of drain; its share is what it was."""
    catalog, namespace = _mesh(request).catalog, request.state.namespace
    return await _reply(request, await catalog.share(name, namespace, version, draining=False))


@router.post(
    "/{name}/instances/{instance}/drain", summary="Drain an instance for good", responses=_OWNERS, status_code=204
)
async def drain_instance(request: Request, name: str, instance: str) -> Response:
    """Until it is resumed, or another process registers under its name (`fresh`); its heartbeats do not end it."""
    await _mesh(request).catalog.drain(name, request.state.namespace, instance, told=True)
    return Response(status_code=204)


@router.post(
    "/{name}/instances/{instance}/resume", summary="Work for a drained instance again", status_code=204,
    responses=_OWNERS | {409: {"description": "`instance_left`: it left by itself, so only it can come back"}},
)  # fmt: skip
async def resume_instance(request: Request, name: str, instance: str) -> Response:
    """The opposite of drain."""
    await _mesh(request).catalog.serve(name, request.state.namespace, instance)
    return Response(status_code=204)
