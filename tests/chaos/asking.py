"""One call of a caller: sent, classified as ok, fail or unknown, and recorded on both sides of the wire's silence.

Speaks both surfaces of the gateway and reads out of an answer what the checker compares. Plans nothing: callers.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from mesh.errors import NotSent, PeerFault
from mesh.ids import short_id
from mesh.pool import Pool, Reply, Target
from tests.chaos.history import Kind, Line, Recorder, What, digest

JSON = (b"content-type", b"application/json")
UNSURE = frozenset({"outcome_unknown", "error"})
"""Codes of 5xx answers after which the request may have been applied."""
ANSWERED = frozenset({200, 201, 202, 424})
RUNNING = frozenset({408, 412})
"""The legacy Nexus reads say that way that an operation still runs."""


class Gateway(NamedTuple):
    """One gateway as callers see it."""

    name: str
    target: Target


class Record(msgspec.Struct):
    """The fields of a /v1 record that the checker compares."""

    id: str
    state: str
    events: int
    result: msgspec.Raw = msgspec.Raw(b"")


class Caller:
    """Calls on behalf of one client; its lines carry its name."""

    def __init__(self, name: str, pool: Pool, record: Recorder) -> None:
        self.name = name
        self._pool = pool
        self._record = record

    async def ask(
        self,
        what: What,
        gateway: Gateway,
        method: bytes,
        path: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes = b"",
        *,
        timeout_s: float,
        **about: Any,
    ) -> Line:
        """The outcome line of the call; `about` stands in both its lines."""
        call = short_id("call")
        self._record(Kind.INVOKE, what, process=self.name, call=call, gateway=gateway.name, **about)
        try:
            reply = await self._pool.request(method, gateway.target, path, headers, body, timeout_s=timeout_s)
        except NotSent:
            kind, found = Kind.FAIL, {"code": "not_sent"}
        except PeerFault as fault:
            kind, found = Kind.UNKNOWN, {"code": fault.code}
        else:
            kind, found = judge(reply)
        about = about | found
        return self._record(kind, what, process=self.name, call=call, gateway=gateway.name, **about)


def judge(reply: Reply) -> tuple[Kind, dict[str, Any]]:
    """Tri-state outcome and what the answer shows."""
    content_type = reply.header(b"content-type") or b""
    if reply.header(b"mesh-failure-source") == b"gateway" and reply.status not in (424, *RUNNING):
        return _refused(reply, msgspec.json.decode(reply.body).get("metadata", {}).get("code", "error"))
    if content_type.startswith(b"application/problem+json"):
        return _refused(reply, msgspec.json.decode(reply.body)["code"])
    found: dict[str, Any] = {"status": reply.status, "op": _header(reply, b"mesh-operation-id")}
    if reply.status in RUNNING:
        return Kind.OK, {"status": reply.status, "state": "running"}
    if reply.status not in ANSWERED:
        # A handler's own refusal passes untouched (P13): the operation failed, in words of its agent.
        return Kind.OK, found | {"state": "failed"}
    if not found["op"]:
        del found["op"]
    return Kind.OK, found | _shown(reply, content_type)


def _refused(reply: Reply, code: str) -> tuple[Kind, dict[str, Any]]:
    unsure = reply.status >= 500 and (reply.status != 503 or code in UNSURE)
    detail = {"retry_after": bool(reply.header(b"retry-after"))} if reply.status in (429, 503) else {}
    return Kind.UNKNOWN if unsure else Kind.FAIL, {"status": reply.status, "code": code, "detail": detail}


def _shown(reply: Reply, content_type: bytes) -> dict[str, Any]:
    state = _header(reply, b"nexus-operation-state")
    if state:
        return {"state": state, "digest": digest(reply.body)}
    if reply.status == 201:
        return {"state": "running", "op": msgspec.json.decode(reply.body)["token"]}
    if content_type != b"application/json" or not reply.body:
        return {}
    found = msgspec.json.decode(reply.body, type=Record)
    shown: dict[str, Any] = {"op": found.id, "state": found.state, "seq": found.events}
    # Answers to a cancel show the record without its result.
    result = bytes(found.result)
    return shown | ({"digest": digest(result)} if found.state == "succeeded" and result else {})


def _header(reply: Reply, name: bytes) -> str:
    return (reply.header(name) or b"").decode("latin-1")
