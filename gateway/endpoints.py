"""`/v1/endpoints`: the registry over HTTP. HTTP in, thin: every route is one call of the catalog.

Bodies are read strictly and capped before FastAPI sees them, after the caller is known. URLs are vetted by the egress
policy here, because the registry knows none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from msgspec.structs import replace

from gateway.query import check_query
from gateway.watching import records, watching
from mesh.edge import Headers
from mesh.edge.bodies import Caller, read_body, request_of
from mesh.errors import Malformed
from mesh.wire import load_json
from registry.records import LIMIT, LIMIT_MAX, Filters, instance_record, page
from registry.spec import INSTANCE_BYTES_MAX, SPEC_BYTES_MAX, SPEC_NS_MAX, EndpointSpec, InstanceSpec

if TYPE_CHECKING:
    from gateway.app import Mesh
    from registry.catalog import Endpoint

SEARCH_CHARS_MAX: Final = 200
NEVER: Final = "0"
"""A version that no endpoint ever has: versions begin with 1."""

_JSON: Final = "application/json"
_CONTENT_TYPE: Final = (b"content-type", b"application/json")
_etag: Final = re.compile(r'"v([1-9][0-9]{0,15})"').fullmatch
_encode: Final = msgspec.json.Encoder().encode


class _Checked(Request):
    """A request whose body was read and parsed already, by rules stricter than FastAPI's."""

    payload: bytes = b""
    value: Any = None

    async def body(self) -> bytes:
        return self.payload

    async def json(self) -> Any:
        return self.value


class _Route(APIRoute):
    """Knows the caller first, then reads the body with its cap, then lets FastAPI validate."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            mesh = _mesh(request)
            namespace = mesh.auth.authenticate(request.scope["headers"]).namespace
            scope = dict(request.scope)
            payload = b""
            if request.method == "PUT":
                bytes_max = INSTANCE_BYTES_MAX if "instance" in request.path_params else SPEC_BYTES_MAX
                routes = replace(mesh.front.hot, body_bytes_max=bytes_max, limit="the limit of a registration")
                raw = request_of(request.scope, Caller(request.receive))
                await read_body(raw, request.receive, routes)
                payload = raw.body
                # There is one format, so a body says all; FastAPI asks for the type that curl -d does not send.
                headers: Headers = scope["headers"]
                scope["headers"] = [*(one for one in headers if one[0] != b"content-type"), _CONTENT_TYPE]
            checked = _Checked(scope, request.receive)
            checked.payload, checked.value = payload, load_json(payload, ns_max=SPEC_NS_MAX) if payload else None
            checked.state.namespace = namespace
            return await handle(checked)

        return strict


router = APIRouter(prefix="/v1/endpoints", tags=["registry"], route_class=_Route)


def _mesh(request: Request) -> Mesh:
    return request.app.state.mesh


def _namespace(request: Request) -> str:
    return request.state.namespace


def _reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(body), status, {"cache-control": "no-store", **(headers or {})}, _JSON)


async def _one(mesh: Mesh, endpoint: Endpoint, viewer: str) -> Response:
    (record,) = await records(mesh, [endpoint], viewer, instances=True)
    return _reply(record, 200, {"etag": endpoint.etag})


def _if_match(request: Request, name: str) -> str:
    """The version that `If-Match` asks for, as the store wants it: "" none given, `*` any, NEVER what is no version."""
    given = ",".join(request.headers.getlist("if-match")).strip()
    if given in ("", "*"):
        return given
    versions = [found[1] for one in given.split(",") if (found := _etag(one.strip()))]
    current = _mesh(request).catalog.version_of(name)
    return current if current in versions else versions[0] if versions else NEVER


def _filters(request: Request, service: str, operation: str) -> Filters:
    """`label=name`, `label=name=value` and `label.name=value`, as often as wanted."""
    labels: dict[str, str | None] = {}
    for name, value in request.query_params.multi_items():
        if name == "label":
            key, equals, wanted = value.partition("=")
            labels[key] = wanted if equals else None
        elif name.startswith("label."):
            labels[name.removeprefix("label.")] = value
    return Filters(service, operation, labels, request.query_params.get("search", "")[:SEARCH_CHARS_MAX])


_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {
    404: {"description": "Not there, or another namespace's"},
}
_OWNERS: Final = _NOT_FOUND | {403: {"description": "`not_owner`: you may call it, and only its owner may do this"}}


@router.get(
    "",
    summary="List endpoints",
    responses={200: {"description": "A page `{items, next_cursor}`; with `watch=true` server-sent events"}},
)
async def list_endpoints(
    request: Request,
    service: str = "",
    operation: str = "",
    label: Annotated[list[str] | None, Query(description="a tag, `name` or `name=value`; all must hold")] = None,
    search: Annotated[str, Query(description="words that its name, description, tags or operations have")] = "",
    cursor: str = "",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT,
    watch: Annotated[bool, Query(description="stream what is there, then every change")] = False,  # noqa: FBT002
) -> Response:
    """What the namespace owns or may call, by name."""
    mesh, namespace = _mesh(request), _namespace(request)
    check_query(request, labels=True)
    filters = _filters(request, service, operation)
    if watch:
        return watching(request, namespace, filters, cursor)
    found = page(mesh.catalog, namespace, filters, cursor, limit)
    items = await records(mesh, found.items, namespace, instances=False)
    headers: dict[str, str] = {}
    if found.next_cursor is not None:
        following = request.url.include_query_params(cursor=found.next_cursor)
        headers["link"] = f'<{following.path}?{following.query}>; rel="next"'
    return _reply({"items": items, "next_cursor": found.next_cursor}, headers=headers)


@router.put(
    "/{name}",
    summary="Create or replace an endpoint",
    responses={
        201: {"description": "New"},
        200: {"description": "Replaced, or equal to what was there; `contract_change` where the contract changed;"
            " `warnings` where `allow` names a namespace that this gateway does not know"},
        400: {"description": "Bad name, URL that the egress policy forbids, or a feature that does not work yet"},
        409: {
            "description": "`name_taken`: the name is another namespace's. `contract_breaks`: callers of the present"
            " contract would break; `errors` has each break with its pointer and the callers seen lately."
            " `kind_in_use`: live instances of the other kind would get no more work; `errors` names them"
        },
        412: {"description": "`If-Match` names another version"},
    },
)
async def put_endpoint(
    request: Request,
    name: str,
    spec: EndpointSpec,
    force: Annotated[bool, Query(description="replace although callers break, or live instances are cut off")] = False,  # noqa: FBT002
) -> Response:
    """Every field may be left out. `ETag` is the version for `If-Match`."""
    mesh, namespace = _mesh(request), _namespace(request)
    if "if-none-match" in request.headers:
        raise Malformed("If-None-Match is not supported yet; leave it out", code="not_supported_yet")
    if spec.target.url is not None:
        mesh.egress.vet(spec.target.url)
    put = await mesh.catalog.put(name, namespace, spec, if_match=_if_match(request, name), force=force)
    (record,) = await records(mesh, [put.endpoint], namespace, instances=True)
    if put.verdict is not None:
        record["contract_change"] = put.verdict._asdict()
    # Not refused: gateways of one mesh may be given a new namespace one after the other.
    strangers = [(at, one) for at, one in enumerate(spec.allow) if one != "*" and mesh.auth.stranger(one)]
    if strangers:
        record["warnings"] = [
            {"pointer": f"/allow/{at}", "detail": f"this gateway knows no namespace {one!r}: nobody may call by that"}
            for at, one in strangers
        ]
    headers = {"etag": put.endpoint.etag}
    if put.created:
        return _reply(record, 201, headers | {"location": f"/v1/endpoints/{put.endpoint.name}"})
    return _reply(record, 200, headers)


@router.get("/{name}", summary="One endpoint", responses=_NOT_FOUND)
async def get_endpoint(request: Request, name: str) -> Response:
    """Registration, health with why and since, instances, and how many operations run and wait."""
    mesh, namespace = _mesh(request), _namespace(request)
    endpoint = await mesh.catalog.locate(name, namespace)
    await mesh.catalog.instances.reread([endpoint.id])
    return await _one(mesh, endpoint, namespace)


@router.delete(
    "/{name}", summary="Remove an endpoint", status_code=204, responses=_OWNERS | {412: {"description": "Stale"}}
)
async def delete_endpoint(request: Request, name: str) -> Response:
    """Work that waits for it stays, shown as blocked by `endpoint_deleted`, until its own deadlines."""
    mesh = _mesh(request)
    kept_ms = mesh.settings.gateway.retention_ms
    await mesh.catalog.delete(name, _namespace(request), if_match=_if_match(request, name), kept_ms=kept_ms)
    return Response(status_code=204)


@router.post("/{name}/pause", summary="Keep new operations, dispatch none", responses=_OWNERS)
async def pause_endpoint(request: Request, name: str) -> Response:
    """What an agent already has goes on."""
    mesh, namespace = _mesh(request), _namespace(request)
    return await _one(mesh, await mesh.catalog.pause(name, namespace), namespace)


@router.post("/{name}/resume", summary="Dispatch again", responses=_OWNERS)
async def resume_endpoint(request: Request, name: str) -> Response:
    """What waited goes out in the order of acceptance."""
    mesh, namespace = _mesh(request), _namespace(request)
    return await _one(mesh, await mesh.catalog.resume(name, namespace), namespace)


@router.put(
    "/{name}/instances/{instance}",
    summary="Register an instance, or keep up its lease",
    responses={201: {"description": "New"}, 200: {"description": "Renewed"}, **_OWNERS},
)
async def put_instance(request: Request, name: str, instance: str, spec: InstanceSpec) -> Response:
    """Repeat it well within `ttl_ms`, say every third of it; silent for longer, it leaves the rotation."""
    mesh, namespace = _mesh(request), _namespace(request)
    mesh.egress.vet(spec.url)
    created, endpoint, found = await mesh.catalog.register(name, namespace, instance, spec)
    judged = found.judge(mesh.catalog.time.now(), mesh.catalog.time)
    record = {"endpoint": endpoint.name, **instance_record(endpoint, found, judged, mesh.catalog.time, own=True)}
    return _reply(record, 201 if created else 200)


@router.delete("/{name}/instances/{instance}", summary="An instance leaves", status_code=204, responses=_OWNERS)
async def delete_instance(request: Request, name: str, instance: str) -> Response:
    """What its process says at its end: no new work, and gone from the list when its lease ends. Others drain it."""
    await _mesh(request).catalog.drain(name, _namespace(request), instance)
    return Response(status_code=204)
