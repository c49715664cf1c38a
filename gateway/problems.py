"""Errors outside the Nexus surface: `application/problem+json` (RFC 9457), for raw routes and for FastAPI's alike.

`problem` is pure. Every problem carries type, title, status, detail, code, retryable; 429 and 503 carry `Retry-After`,
401 `WWW-Authenticate` (RFC 6750). What was not expected is logged and told to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.edge import Answer, Headers
from mesh.errors import ConfigError, MeshError, PeerFault, Refusal, StoreUnsafe, TooMany, Unauthenticated, Unavailable
from registry.spec import sentence, unprocessable

TYPE_PREFIX: Final = "urn:mesh:problem:"
UNSAFE_RETRY_S: Final = 5
STORE_REFUSED: Final = "store_refused"
STORE_REFUSED_DETAIL: Final = "this gateway cannot use its store; its log says why"
KEY_MISSING: Final = "key_missing"
"""Code of a 401 to a request without credentials, which RFC 6750 section 3.1 answers without an error word."""

_CONTENT_TYPE: Final = (b"content-type", b"application/problem+json")
_NO_STORE: Final = (b"cache-control", b"no-store")
_encode: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


def render(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    retry_after_s: int | None = None,
    operation_id: str | None = None,
    errors: Sequence[dict[str, Any]] = (),
    headers: Headers | None = None,
) -> Answer:
    """One problem. `errors` are `{pointer, detail}` with RFC 6901 pointers into the body, or `{parameter, detail}`."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + code,
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
    }
    if operation_id is not None:
        body["operation_id"] = operation_id
    if errors:
        body["errors"] = errors
    found = [_CONTENT_TYPE, _NO_STORE, *(headers or [])]
    if retry_after_s is not None:
        found.append((b"retry-after", b"%d" % max(1, retry_after_s)))
    return Answer(status, found, _encode(body))


def problem(error: Exception) -> Answer:
    """The answer that `error` stands for; whatever is no MeshError is a 500 that says nothing."""
    if isinstance(error, Refusal):
        return render(
            error.status,
            error.code,
            error.detail,
            retryable=error.retryable,
            retry_after_s=error.retry_after_s if isinstance(error, TooMany) else None,
            operation_id=error.operation_id,
            errors=error.errors,
            headers=[_challenge(error)] if isinstance(error, Unauthenticated) else list(getattr(error, "headers", ())),
        )
    if isinstance(error, Unavailable):
        return render(
            error.status, error.code, error.detail, retryable=error.retryable, retry_after_s=error.retry_after_s
        )
    if isinstance(error, ConfigError):
        # The link's: the store came back and no longer lets this gateway in. What it said is for the log.
        return render(503, STORE_REFUSED, STORE_REFUSED_DETAIL, retryable=True, retry_after_s=UNSAFE_RETRY_S)
    if isinstance(error, StoreUnsafe):
        return render(503, error.code, error.detail, retryable=True, retry_after_s=UNSAFE_RETRY_S)
    if isinstance(error, PeerFault):
        return render(502, error.code, error.detail, retryable=True)
    return render(500, "internal", "the gateway failed; its log says why", retryable=True)


def _challenge(error: Unauthenticated) -> tuple[bytes, bytes]:
    value = b'Bearer realm="mesh"'
    return (b"www-authenticate", value if error.code == KEY_MISSING else value + b', error="invalid_token"')


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    return response


async def _on_mesh_error(request: Request, error: Exception) -> Response:
    if isinstance(error, MeshError) and not isinstance(error, Refusal | Unavailable | StoreUnsafe):
        _log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.detail)
    return _response(problem(error))


class _Unexpected:
    """ASGI: what nothing else expected is a 500 like any other answer.

    Not Starlette's handler of exceptions: after its answer it raises on, upon which the server hangs up on a caller who
    was told nothing of that, and whose next request is reset.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise  # the server logs it, and cuts off what cannot be completed
            _log.error("unexpected error in %s %s", scope["method"], scope["path"], exc_info=error)
            await _response(problem(error))(scope, receive, send)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    """FastAPI's own validation: 400 for what is no JSON, 422 for the rest (P3)."""
    found: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    if any(one["type"] == "json_invalid" for one in found):
        return _response(render(400, "json_invalid", "the body is not JSON"))
    if all(one["loc"][:1] == ("body",) for one in found):
        return _response(problem(unprocessable(found, skip=1)))
    errors = [{"parameter": str(one["loc"][-1]), "detail": sentence(one)} for one in found]
    detail = f"{errors[0]['parameter']}: {errors[0]['detail']}"
    return _response(render(422, "parameter_invalid", detail, errors=errors))


_WORDS: Final = {404: ("unknown_route", "there is nothing at this path"), 405: ("method_not_allowed", "")}


async def _on_http(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI raise by themselves: unknown paths, wrong methods, unreadable bodies."""
    if not isinstance(error, HTTPException):
        return _response(problem(error))
    code, detail = _WORDS.get(error.status_code, ("", ""))
    given = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        given["allow"] = ", ".join(_allowed(request))
        detail = f"{request.method} is not allowed here; allowed: {given['allow']}"
    if not code:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given.items() if name != "Allow"
    ]
    return _response(render(error.status_code, code, detail or str(error.detail), headers=headers))


def _allowed(request: Request) -> list[str]:
    """All methods of the path (RFC 9110, 15.5.6); Starlette names those of the first route with it alone."""
    methods: set[str] = set()
    for router in request.app.state.routers:
        for route in router.routes:
            if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
                methods |= route.methods or set()
    return sorted(methods)


def install(app: FastAPI, *routers: APIRouter) -> None:
    """Make every error of `app`, which includes `routers`, a problem."""
    app.state.routers = (app.router, *routers)
    app.add_exception_handler(MeshError, _on_mesh_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(_Unexpected)
