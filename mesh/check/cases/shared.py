"""Words that the cases share: the usual requests and the usual replies. Data, nothing else."""

from __future__ import annotations

from typing import Any, Final

from mesh.check.case import ABSENT, JSON, NOTHING, Ask, Expect, Got, Has, Pairs, Reply, Until

ASYNC: Final = ("prefer", "respond-async")
WAIT: Final = ("prefer", "wait=10")
ONCE: Final = {"retry": {"max_attempts": 1}}
"""Policy: the first attempt is the only one."""
QUICK: Final = {"retry": {"initial_ms": 10, "max_ms": 20, "max_attempts": 3}, "breaker": {"failures": 0}}
"""Policy: three attempts at once."""
ECHO: Final = (Reply(echo=True),)
HELD: Final = (Reply(hold="go", json="held"),)

CALLBACK: Final = "callback={receiver}%2Fdone%3Fa%3D1%26b%3D%252Fx%2520y"
"""A callback URL with a query of its own, percent-encoded as it must be."""
CALLBACK_TARGET: Final = "/done?a=1&b=%2Fx%20y"

UNTYPED: Final = Expect(status=200, body=b"", type=ABSENT)
NULL_IN: Final = Expect(body=b"", type=ABSENT)
REFUSED: Final = Expect(failure="BAD_REQUEST")
NOT_FOUND: Final = Expect(failure="NOT_FOUND")
RUNNING: Final = Expect(status=201, type=JSON, json={"token": "{first.token}", "state": "running"})
ACCEPTED: Final = Expect(status=202, body=b"")


def start(**fields: Any) -> Ask:
    """A start at the target, JSON unless `type` or `body` says otherwise; `saved` as `first` unless named."""
    if fields.get("json", NOTHING) is not NOTHING and "type" not in fields:
        fields["type"] = JSON
    fields.setdefault("save", "first")
    return Ask(**fields)


def cancel(**fields: Any) -> Ask:
    """A cancel of the operation that was saved as `first`, by header, unless a query or other headers are given."""
    if "headers" not in fields and "query" not in fields:
        fields["headers"] = (("nexus-operation-token", "{first.token}"),)
    fields.setdefault("path", "{op}/cancel")
    return Ask(**fields)


def legacy(wait: str = "", **fields: Any) -> Ask:
    """`GET .../result` of older clients."""
    fields.setdefault("query", "token={first.token}" + (f"&wait={wait}" if wait else ""))
    return Ask(method="GET", path="{op}/result", **fields)


def ended(expect: Expect, within_ms: int = 10_000) -> Until:
    """The operation `first` of a gateway ended so."""
    return Until(ask=legacy(expect=expect), within_ms=within_ms)


def happened(event: str) -> Until:
    """The history of the operation `first` of a gateway has such an event."""
    path = "/v1/operations/{first.token}/events"
    return Until(ask=Ask(method="GET", path=path, expect=Expect(status=200, json={"items": Has({"type": event})})))


def complete(state: str = "succeeded", *, of: str = "call", headers: Pairs = (), **fields: Any) -> Ask:
    """What an agent reports of the start that was saved as `call`, to the callback that came with it."""
    token = () if any(name == "token" for name, _ in headers) else (("token", f"{{{of}.#nexus-callback-token}}"),)
    told = (("nexus-operation-state", state),) if state else ()
    if fields.get("json", NOTHING) is not NOTHING and "type" not in fields:
        fields["type"] = JSON
    return Ask(url=f"{{{of}.@callback}}", headers=(*token, *told, *headers), bare=True, **fields)


def started(token: str = "inner", **fields: Any) -> Reply:  # noqa: S107 - no secret
    """201."""
    return Reply(status=201, json={"token": token, "state": "running"}, **fields)


def handler_error(status: int, kind: str, message: str = "as scripted", **details: Any) -> Reply:
    """A HandlerError; `details` beside its type."""
    return Reply(status=status, json=handler_failure(kind, message, **details))


def handler_failure(kind: str, message: str = "as scripted", **details: Any) -> dict[str, Any]:
    """Its JSON."""
    return {"message": message, "metadata": {"type": "nexus.HandlerError"}, "details": {"type": kind, **details}}


def operation_failure(state: str, message: str = "as scripted", cause: Any = None) -> dict[str, Any]:
    """The JSON of an OperationError."""
    failure = {"message": message, "metadata": {"type": "nexus.OperationError"}, "details": {"state": state}}
    return failure if cause is None else failure | {"cause": cause}


def operation_error(state: str, message: str = "as scripted", cause: Any = None) -> Reply:
    """424 in both shapes."""
    return Reply(status=424, json=operation_failure(state, message, cause), headers=(("nexus-operation-state", state),))


def got(**fields: Any) -> Got:
    """What the handler behind the gateway got last."""
    expect = Expect(**fields)
    return Got(nth=-1, expect=expect)


def record(state: str = "succeeded", **fields: Any) -> dict[str, Any]:
    """An operation as /v1 of a gateway shows it, for clients."""
    return {
        "id": "00-0123456789abcdef0123",
        "state": state,
        "run": 1,
        "attempt": 1,
        "endpoint": "peer",
        "service": "svc",
        "operation": "op",
        "namespace": "default",
        "labels": {},
        "created_at": "2026-01-01T00:00:00.000Z",
        "updated_at": "2026-01-01T00:00:00.000Z",
        "closed_at": None,
        "deadline": None,
        "events": 2,
        **fields,
    }
