"""The routes of pull mode as FastAPI knows them: declared for openapi.json (see gateway/declared.py)."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.declared import ANY_BYTES, JSON, header, hot, schema

router = APIRouter()

_TOKEN: Final = header("Mesh-Task-Token", "the task token, for one attempt; or `Authorization: Bearer`")


def _either(*names: str) -> dict[str, Any]:
    return {JSON: {"schema": {"anyOf": [schema(one)[JSON]["schema"] for one in names]}}}


_ONE_OR_MANY: Final = _either("AnswerBody", "AnswersBody")
_ANSWERS: Final[dict[int | str, Any]] = {
    200: {
        "description": "Booked: `{status}`, or with many `{tasks: [{status}]}` in the order given",
        "content": _either("StatusBody", "StatusesBody"),
    },
    409: {"description": "`lease_lost`, `other_outcome` or `operation_ended`, where the request is about one attempt"},
}


@router.post(
    "/v1/endpoints/{name}/poll",
    tags=["agents"],
    summary="Ask for work, and answer",
    openapi_extra={"requestBody": {"required": True, "content": schema("PollBody")}},
    responses={
        200: {"description": "Tasks, the status of each answer, attempts to stop", "content": schema("FrameBody")},
        409: {"description": "`endpoint_pushes`: the endpoint is not of kind pull"},
    },
)
async def poll(request: Request, name: str) -> Response:
    """Returns as soon as there is something to say, at the latest after `wait_ms`. Tasks are leased from then on."""
    return await hot(request)


@router.post(
    "/v1/tasks/complete",
    tags=["agents"],
    summary="An attempt has its result",
    openapi_extra={
        "parameters": [_TOKEN],
        "requestBody": {"content": ANY_BYTES | schema("AnswersBody")},
    },
    responses=_ANSWERS,
)
async def complete(request: Request) -> Response:
    """With the token in a header the body is the result, any media type; else many."""
    return await hot(request)


@router.post(
    "/v1/tasks/fail",
    tags=["agents"],
    summary="An attempt, or the operation, failed",
    openapi_extra={"parameters": [_TOKEN], "requestBody": {"content": _ONE_OR_MANY}},
    responses=_ANSWERS,
)
async def fail(request: Request) -> Response:
    """`message` or `failure`; with `type` or `retryable` it is the attempt that failed, and may be repeated."""
    return await hot(request)


@router.post(
    "/v1/tasks/release",
    tags=["agents"],
    summary="Give an attempt back",
    openapi_extra={"parameters": [_TOKEN], "requestBody": {"content": _ONE_OR_MANY}},
    responses=_ANSWERS,
)
async def release(request: Request) -> Response:
    """Somebody else gets it at once; it counts against no limit of attempts."""
    return await hot(request)
