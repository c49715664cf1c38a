"""What every error of a surface has, checked in one place."""

from __future__ import annotations

import re

from standardwebhooks.webhooks import Webhook

from tests.surface.actors import Call
from tests.surface.gateways import WEBHOOK_SECRET
from tests.surface.wire import Answer

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch
"""RFC 3339 UTC with milliseconds, as all times on /v1."""


def check_failure(answer: Answer, status: int, kind: str, code: str = "") -> None:
    """P4: a HandlerError in the shape of today and with the header of older clients, marked as the gateway's own."""
    assert (answer.status, answer["content-type"]) == (status, "application/json"), answer
    failure = answer.json
    assert (failure["metadata"]["type"], failure["details"]["type"]) == ("nexus.HandlerError", kind)
    assert failure["message"]
    assert answer["mesh-failure-source"] == "gateway"
    retryable = kind in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "REQUEST_TIMEOUT")
    assert answer["nexus-request-retryable"] == str(retryable).lower()
    if code:
        assert failure["metadata"]["code"] == code


def check_problem(answer: Answer, status: int, code: str, pointer: str | None = None) -> None:
    """P3."""
    assert (answer.status, answer["content-type"]) == (status, "application/problem+json"), answer
    problem = answer.json
    assert {"type", "title", "status", "detail", "code", "retryable"} <= problem.keys()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["type"] == f"urn:mesh:problem:{code}"
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem


def verify(call: Call) -> None:
    """Standard Webhooks, by the package of its authors."""
    Webhook(WEBHOOK_SECRET).verify(call.body.decode(), dict(call.headers))
