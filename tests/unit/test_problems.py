"""Errors as users read them: RFC 9457, the same from raw routes and from FastAPI's."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Query
from fastapi.exceptions import HTTPException
from pydantic import BaseModel, Field

from gateway.problems import install, problem
from mesh.errors import (
    ConfigError,
    Conflict,
    NotFound,
    OutcomeUnknown,
    ReplyLost,
    StoreUnavailable,
    StoreUnsafe,
    TooMany,
    Unauthenticated,
    Unprocessable,
)

ALWAYS = {"type", "title", "status", "detail", "code", "retryable"}


def rendered(error: Exception) -> tuple[int, dict[str, str], dict[str, Any]]:
    answer = problem(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    body = json.loads(answer.body)
    assert headers["content-type"] == "application/problem+json"
    assert body.keys() >= ALWAYS
    assert (body["status"], body["type"]) == (answer.status, f"urn:mesh:problem:{body['code']}")
    return answer.status, headers, body


class TestRendering:
    def test_a_refusal_says_what_and_for_which_operation(self) -> None:
        status, headers, body = rendered(Conflict("the key was used", code="key_reused", operation_id="00-x"))
        assert (status, body["operation_id"], body["title"], body["retryable"]) == (409, "00-x", "Key reused", False)
        assert "retry-after" not in headers

    def test_pointers_are_listed(self) -> None:
        _, _, body = rendered(Unprocessable("wrong", errors=[{"pointer": "/a", "detail": "b"}]))
        assert body["errors"] == [{"pointer": "/a", "detail": "b"}]

    @pytest.mark.parametrize(
        ("error", "status", "after"),
        [
            (TooMany("slower", retry_after_s=7), 429, "7"),
            (TooMany("slower", retry_after_s=0), 429, "1"),
            (StoreUnavailable("away", retry_after_s=2), 503, "2"),
            (OutcomeUnknown("perhaps"), 503, "1"),
            (StoreUnsafe("no AOF.", mend="Turn it on."), 503, "5"),
        ],
    )
    def test_what_may_be_repeated_says_when(self, error: Exception, status: int, after: str) -> None:
        """P3: whole seconds, on every 429 and 503."""
        found, headers, body = rendered(error)
        assert (found, headers["retry-after"], body["retryable"]) == (status, after, True)

    def test_401_carries_a_challenge(self) -> None:
        assert rendered(Unauthenticated("no"))[1]["www-authenticate"].startswith("Bearer")

    def test_a_peers_fault_is_502(self) -> None:
        assert rendered(ReplyLost("gone"))[0] == 502

    @pytest.mark.parametrize("error", [ValueError("SECRET"), KeyError("SECRET")])
    def test_what_nobody_expected_says_nothing(self, error: Exception) -> None:
        status, _, body = rendered(error)
        assert (status, "SECRET" in json.dumps(body)) == (500, False)

    def test_a_store_that_lets_nobody_in_is_503_and_says_nothing(self) -> None:
        """While it runs, a gateway gets a ConfigError from the store's link alone: the log-in was refused."""
        status, headers, body = rendered(ConfigError("SECRET"))
        assert (status, "retry-after" in headers, "SECRET" in json.dumps(body)) == (503, True, False)


class Body(BaseModel):
    count: Annotated[int, Field(ge=1)]


def app() -> FastAPI:
    found = FastAPI()
    install(found)

    @found.post("/things")
    async def post(body: Body) -> dict[str, int]:
        return {"count": body.count}

    @found.get("/things")
    async def get(limit: Annotated[int, Query(le=10)] = 1) -> dict[str, int]:
        return {"limit": limit}

    @found.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        errors: dict[str, Exception] = {
            "ours": NotFound("there is no x", code="unknown_x"),
            "unexpected": RuntimeError("SECRET"),
            "teapot": HTTPException(418, "short and stout", headers={"X-Spout": "yes"}),
        }
        raise errors[kind]

    return found


@pytest.fixture
def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


class TestInstalled:
    @pytest.mark.parametrize(
        ("method", "path", "content", "status", "code"),
        [
            ("GET", "/nowhere", None, 404, "unknown_route"),
            ("DELETE", "/things", None, 405, "method_not_allowed"),
            ("POST", "/things", "{", 400, "json_invalid"),
            ("POST", "/things", '{"count": 0}', 422, "body_invalid"),
            ("POST", "/things", None, 422, "body_invalid"),
            ("GET", "/things?limit=x", None, 422, "parameter_invalid"),
            ("GET", "/raise/ours", None, 404, "unknown_x"),
            ("GET", "/raise/teapot", None, 418, "im_a_teapot"),
            ("GET", "/raise/unexpected", None, 500, "internal"),
        ],
    )
    async def test_every_error_is_a_problem(
        self, client: httpx.AsyncClient, method: str, path: str, content: str | None, status: int, code: str
    ) -> None:
        headers = {"content-type": "application/json"}
        reply = await client.request(method, path, content=content, headers=headers)
        assert reply.headers["content-type"] == "application/problem+json"
        body = reply.json()
        assert (reply.status_code, body["code"]) == (status, code)
        assert reply.headers.get("allow") == ("GET, POST" if status == 405 else None)
        assert body.keys() >= ALWAYS

    async def test_bodies_are_pointed_into_and_parameters_named(self, client: httpx.AsyncClient) -> None:
        body = (await client.post("/things", json={"count": 0})).json()
        assert body["errors"] == [{"pointer": "/count", "detail": "input should be greater than or equal to 1"}]
        parameter = (await client.get("/things?limit=11")).json()
        assert parameter["errors"][0]["parameter"] == "limit"

    async def test_headers_of_the_framework_are_kept(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/raise/teapot")).headers["x-spout"] == "yes"
        assert (await client.delete("/things")).headers["allow"]

    async def test_the_unexpected_is_logged_and_not_told(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.ERROR, logger="gateway.problems"):
            reply = await client.get("/raise/unexpected")
        assert "SECRET" not in reply.text
        assert "SECRET" in caplog.text
