"""The hot routes as FastAPI knows them: declared for openapi.json, each calling the function that mesh/edge calls.

A request only comes this way when something stands between the socket and mesh/edge. The responses of
other routes, and what is common to all, are added in openapi.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from mesh.errors import Malformed

if TYPE_CHECKING:
    from gateway.app import Mesh

router = APIRouter()

JSON: Final = "application/json"
NEXUS_OPERATION: Final = "/nexus/endpoints/{endpoint}/services/{service}/{operation}"


def schema(name: str, media: str = JSON) -> dict[str, Any]:
    """The content of a body of one kind."""
    return {media: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def header(name: str, description: str) -> dict[str, Any]:
    """A request header."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


ANY_BYTES: Final = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
KEY: Final = header("Idempotency-Key", "1 to 255 visible ASCII characters; an equal repeat gets the same operation")
PREFER: Final = header("Prefer", "`wait=N` seconds to wait for the outcome, or `respond-async`")
MESH_START: Final = header("Mesh-Start", "the order as JSON without `input`; the body is the input then, of any size")
DIGEST: Final = header("Content-Digest", "`sha-256=:...:` of the body, which is refused if it does not fit")
PARENT: Final = [
    header("Mesh-Parent-Token", "the task token of the running attempt that starts this as its child"),
    header("Mesh-Parent-Key", "what the parent's journal calls the child"),
    header("Mesh-Parent-Close", "`cancel` (default) or `keep` the child when the parent ends first"),
]
TOKEN: Final = header("Nexus-Operation-Token", "the token of the start; wins over `?token=`")
STARTED: Final = {"description": "Accepted and durable; it runs", "content": schema("Started")}
FAILURE: Final = schema("Failure")


async def hot(request: Request) -> Response:
    """Run the hot route of this request the slow way."""
    mesh: Mesh = request.app.state.mesh
    route = mesh.find(request.method, request.scope["raw_path"])
    if route is None:
        raise Malformed("there is no such route", code="unknown_route")
    answer = await mesh.front.serve(route, request.scope, request.receive)
    response: Response
    if answer.stream is None:
        response, size = Response(answer.body, answer.status), len(answer.body)
    else:
        response, size = StreamingResponse(answer.stream.chunks(), answer.status), answer.stream.size
    response.raw_headers = [*answer.headers, (b"content-length", b"%d" % size)]
    return response


@router.post(
    "/v1/operations",
    tags=["operations"],
    summary="Start an operation",
    openapi_extra={
        "parameters": [KEY, PREFER, *PARENT, MESH_START, DIGEST],
        "requestBody": {"required": True, "content": schema("StartBody") | ANY_BYTES},
    },
    responses={
        200: {"description": "Ended within the wait: the record with result or failure", "content": schema("Record")},
        202: {"description": "Accepted and durable: `Location` and the record", "content": schema("Record")},
        507: {"description": "No room for a large input; nothing was kept"},
    },
)
async def start(request: Request) -> Response:
    """`Idempotency-Key` makes a repeat safe; `Prefer: wait=N` or `respond-async` says how long to wait."""
    return await hot(request)


@router.get(
    "/v1/operations/{operation_id}/result",
    tags=["operations"],
    summary="The result, with long-poll",
    responses={
        200: {"description": "The result's own bytes and type", "content": ANY_BYTES},
        202: {"description": "Still running", "content": schema("Record")},
        424: {"description": "It failed, was canceled or timed out", "content": FAILURE},
    },
)
async def result(request: Request, operation_id: str, wait: str = "") -> Response:
    """200 the result as the handler sent it, 424 the failure, 202 the record while it runs. `wait` in seconds."""
    return await hot(request)


@router.get(
    "/v1/operations/{operation_id}/input",
    tags=["operations"],
    summary="The input",
    responses={200: {"description": "The input's own bytes and type", "content": ANY_BYTES}},
)
async def input_(request: Request, operation_id: str) -> Response:
    """As its caller sent it; large ones answer a `Range`."""
    return await hot(request)


@router.post(
    NEXUS_OPERATION,
    tags=["nexus"],
    summary="Nexus: start an operation",
    openapi_extra={
        "parameters": [
            header("Nexus-Request-Id", "the idempotency key"),
            PREFER,
            header("Request-Timeout", "how long the caller waits, such as `1.5s`"),
            header("Operation-Timeout", "how long the operation may take, such as `2m`"),
            header("Mesh-Delay", "how long after its acceptance it begins, such as `30s`"),
            header("Mesh-Start-At", "when it begins, RFC 3339, instead of `Mesh-Delay`"),
            *PARENT,
            header("Nexus-Link", '`<url>; type="T"`; may be repeated'),
        ],
        "requestBody": {"content": ANY_BYTES},
    },
    responses={
        200: {"description": "The result's own bytes and type", "content": ANY_BYTES},
        201: STARTED,
        424: {"description": "It failed or was canceled", "content": FAILURE},
    },
)
async def nexus_start(request: Request, endpoint: str, service: str, operation: str, callback: str = "") -> Response:
    """The body is the input, any media type; names are percent-encoded; `Nexus-Callback-*` return with the callback."""
    return await hot(request)


@router.post(
    NEXUS_OPERATION + "/cancel",
    tags=["nexus"],
    summary="Nexus: cancel",
    status_code=202,
    openapi_extra={"parameters": [TOKEN]},
    responses={202: {"description": "Asked for; repeats too"}},
)
async def nexus_cancel(request: Request, endpoint: str, service: str, operation: str, token: str = "") -> Response:
    """The token in `Nexus-Operation-Token` or `?token=`."""
    return await hot(request)


@router.get(
    NEXUS_OPERATION + "/result",
    tags=["nexus"],
    summary="Nexus, older clients: the result",
    openapi_extra={"parameters": [TOKEN]},
    responses={
        200: {"description": "The result's own bytes and type", "content": ANY_BYTES},
        408: {"description": "The wait is over", "content": FAILURE},
        412: {"description": "It still runs", "content": FAILURE},
        424: {"description": "It failed or was canceled", "content": FAILURE},
    },
)
async def nexus_result(
    request: Request, endpoint: str, service: str, operation: str, token: str = "", wait: str = ""
) -> Response:
    """`wait` is a duration such as `10s`."""
    return await hot(request)


@router.get(
    NEXUS_OPERATION,
    tags=["nexus"],
    summary="Nexus, older clients: the state",
    openapi_extra={"parameters": [TOKEN]},
    responses={200: {"description": "`{token, state}`", "content": schema("Started")}},
)
async def nexus_info(request: Request, endpoint: str, service: str, operation: str, token: str = "") -> Response:
    """`state` is running, succeeded, failed or canceled."""
    return await hot(request)


@router.post(
    "/nexus/callback",
    tags=["nexus"],
    summary="Nexus: an agent reports the outcome",
    openapi_extra={
        "parameters": [
            header("Token", "the completion token, which the agent got as `Nexus-Callback-Token`") | {"required": True},
            header("Nexus-Operation-State", "succeeded, failed or canceled") | {"required": True},
        ],
        "requestBody": {"content": ANY_BYTES},
    },
    responses={200: {"description": "Recorded, now or before"}},
)
async def nexus_callback(request: Request) -> Response:
    """The result's own bytes and type, or a Nexus Failure."""
    return await hot(request)
