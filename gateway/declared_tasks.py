"""The verbs of /v1/tasks about durable work, as declared.py has the other hot routes."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.declared import ANY_BYTES, DIGEST, header, hot, schema

router = APIRouter()

TOKEN: Final = header("Mesh-Task-Token", "of one attempt, which the body is then about (also as a Bearer token)")


def _verb(name: str, answer: str, alone: str) -> dict[str, Any]:
    either = [{"$ref": f"#/components/schemas/{name}{shape}"} for shape in ("Body", "Task")]
    refusals = {
        401: "`token_invalid`",
        409: "`lease_lost`, `operation_ended` or `journal_full`",
        410: "`operation_gone`",
    }
    return {
        "tags": ["agents"],
        "openapi_extra": {
            "parameters": [TOKEN],
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": either}}}},
        },
        "responses": {
            200: {
                "description": "One answer per task, in the order asked; about one attempt its answer alone",
                "content": {
                    "application/json": {
                        "schema": {"oneOf": [{"$ref": f"#/components/schemas/{one}"} for one in (answer, alone)]}
                    }
                },
            },
            **{status: {"description": f"About one attempt: {why}"} for status, why in refusals.items()},
        },
    }


@router.post(
    "/v1/tasks/heartbeat",
    summary="Renew the leases of running attempts",
    **_verb("Heartbeat", "Heartbeats", "HeartbeatAnswer"),
)
async def heartbeat(request: Request) -> Response:
    """`ok`, `cancel` (ok, and the caller wants it ended), `lost`, `ended`, `unknown` or `invalid` per task."""
    return await hot(request)


@router.post("/v1/tasks/journal", summary="Keep what a handler did", **_verb("Journal", "Steps", "StepAnswer"))
async def journal(request: Request) -> Response:
    """Entries after the first `at`, all or none. `grown`: there are more than the agent knows; read on, come again."""
    return await hot(request)


@router.put(
    "/v1/tasks/blobs",
    tags=["agents"],
    summary="Keep what is too large for an entry",
    openapi_extra={"parameters": [TOKEN, DIGEST], "requestBody": {"required": True, "content": ANY_BYTES}},
    responses={
        200: {"description": "Kept durably: what an entry has in its place", "content": schema("DataRef")},
        401: {"description": "`token_invalid`"},
        409: {"description": "`lease_lost` or `operation_ended`"},
        410: {"description": "`operation_gone`"},
        507: {"description": "No room; nothing was kept"},
    },
)
async def put_blob(request: Request) -> Response:
    """For the running attempt whose token comes in the header; any bytes, of any type, streamed and checked."""
    return await hot(request)


@router.get(
    "/v1/operations/{operation_id}/blobs/{sha256}",
    tags=["operations"],
    summary="What stands outside its journal",
    responses={200: {"description": "The bytes; their type is in the entry", "content": ANY_BYTES}},
)
async def get_blob(request: Request, operation_id: str, sha256: str) -> Response:
    """For its caller and who has the token of an attempt; its result for one of the parent too. Answers a `Range`."""
    return await hot(request)


@router.post("/v1/tasks/emit", summary="Add to the stream that readers follow", **_verb("Emit", "Steps", "StepAnswer"))
async def emit(request: Request) -> Response:
    """Chunks after the first `at`, as for the journal."""
    return await hot(request)


@router.post("/v1/tasks/suspend", summary="Wait without an attempt", **_verb("Suspend", "Steps", "StepAnswer"))
async def suspend(request: Request) -> Response:
    """Until its time, a child's end or a cancel. `grown`: there is something that the agent has not seen."""
    return await hot(request)


@router.post("/v1/tasks/read", summary="Read journals, with long-poll", **_verb("Read", "Journals", "JournalAnswer"))
async def read(request: Request) -> Response:
    """Entries after the first `after`; with `wait_ms` once there is news of one of them."""
    return await hot(request)
