"""Contracts of endpoints over HTTP: what is promised, how that changed, who relies on it. HTTP in, thin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.service_openapi import describe
from mesh.clock import to_rfc3339
from registry.endpoint import Endpoint

if TYPE_CHECKING:
    from gateway.app import Mesh

router = APIRouter(prefix="/v1/endpoints", tags=["registry"])

_JSON: Final = "application/json"
_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "Not there, or another namespace's"}}
_encode: Final = msgspec.json.Encoder().encode


async def _endpoint(request: Request, name: str) -> tuple[Mesh, str, Endpoint]:
    mesh: Mesh = request.app.state.mesh
    namespace = mesh.auth.authenticate(request.scope["headers"]).namespace
    return mesh, namespace, await mesh.catalog.locate(name, namespace)


def _reply(body: Any, etag: str) -> Response:
    return Response(_encode(body), 200, {"cache-control": "no-store", "etag": etag}, _JSON)


@router.get("/{name}/contract", summary="What is promised, and who relies on it", responses=_NOT_FOUND)
async def get_contract(request: Request, name: str) -> Response:
    """Services with their schemas; to the owner also the callers of the last 7 days and the last changes."""
    mesh, namespace, endpoint = await _endpoint(request, name)
    services = [one.model_dump(exclude_unset=True) for one in endpoint.spec.services or ()]
    body: dict[str, Any] = {"endpoint": endpoint.name, "version": endpoint.version, "services": services}
    if namespace == endpoint.owner:
        body["callers"] = [
            {
                "service": one.service,
                "operation": one.operation,
                "namespace": one.namespace,
                "last_seen": to_rfc3339(one.at_ms),
            }
            for one in await mesh.catalog.callers.of(endpoint.id)
        ]
        body["changes"] = [
            {"version": version, "at": to_rfc3339(at_ms), **msgspec.json.decode(change)}
            for version, at_ms, change in await mesh.catalog_store.contract_changes(endpoint.id)
        ]
    return _reply(body, endpoint.etag)


@router.get("/{name}/openapi.json", summary="OpenAPI 3.1 of its operations", responses=_NOT_FOUND)
async def get_openapi(request: Request, name: str, service: str = "") -> Response:
    """Every listed operation as a typed call of the Nexus surface, with its callbacks; of one `service`, or of all."""
    mesh, _, endpoint = await _endpoint(request, name)
    document = describe(endpoint, mesh.settings.gateway.public_url, service)
    return _reply(document, endpoint.etag)
