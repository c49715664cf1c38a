"""Schedules for callers: the same verbs for both clients, which run the steps (flow.py). Knows no I/O.

`client.schedules.put("nightly", {...})` and its sisters give what the client's `run` gives: a record, or an awaitable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, NotRequired, TypedDict, TypeVar
from urllib.parse import urlencode

from mesh.client.flow import REPLY_TIMEOUT_S, Ask, Flow, exchange
from mesh.errors import ReplyInvalid
from mesh.wire import quote_segment

PATH: Final = "/v1/schedules"
Overlap = Literal["skip", "queue", "allow", "cancel_previous"]
R = TypeVar("R")
"""What the client's `run` makes of a record: the record, or an awaitable of it."""
N = TypeVar("N")
"""The same of nothing."""


class ScheduleSpec(TypedDict):
    """What a schedule is made of; `operation` as the body of `POST /v1/operations`."""

    cron: str
    operation: Mapping[str, Any]
    timezone: NotRequired[str]
    overlap: NotRequired[Overlap]
    catch_up_ms: NotRequired[int]
    jitter_ms: NotRequired[int]
    description: NotRequired[str]


ScheduleRecord = dict[str, Any]
"""As `GET /v1/schedules/{name}` shows it (P370)."""


def ask(method: str, target: str, retry_for_s: float, body: object = None, etag: str = "") -> Flow[Any]:
    """One request; its JSON, or None without a body. All verbs of schedules may be repeated."""
    headers = {"if-match": etag} if etag else {}
    payload = b""
    if body is not None:
        headers["content-type"] = "application/json"
        payload = json.dumps(body).encode()
    answer = yield from exchange(Ask(method, PATH + target, headers, payload, REPLY_TIMEOUT_S), retry_for_s)
    if not answer.body:
        return None
    try:
        return json.loads(answer.body)
    except ValueError:
        raise ReplyInvalid("the gateway answered something else than JSON") from None


class Schedules(Generic[R, N]):
    """The verbs. Raise as those of the client."""

    def __init__(self, run: Callable[[Flow[Any]], Any], retry_for_s: float) -> None:
        self._run = run
        self._retry_for_s = retry_for_s

    def _ask(self, method: str, target: str, body: object = None, etag: str = "") -> Any:
        return self._run(ask(method, target, self._retry_for_s, body, etag))

    def put(self, name: str, spec: ScheduleSpec, *, etag: str = "") -> R:
        """Create or replace it; `etag`: only that version (`"v3"`)."""
        return self._ask("PUT", _at(name), spec, etag)

    def get(self, name: str) -> R:
        """Its record."""
        return self._ask("GET", _at(name))

    def list(self, *, cursor: str = "", limit: int = 50) -> R:
        """`{items, next_cursor}`, by name."""
        return self._ask("GET", f"?{urlencode({'cursor': cursor, 'limit': limit})}")

    def remove(self, name: str, *, etag: str = "") -> N:
        """Its runs go on."""
        return self._ask("DELETE", _at(name), etag=etag)

    def pause(self, name: str) -> R:
        """Start nothing more."""
        return self._ask("POST", f"{_at(name)}/pause")

    def resume(self, name: str) -> R:
        """Go on with the next time."""
        return self._ask("POST", f"{_at(name)}/resume")

    def backfill(self, name: str, from_: str, until: str, *, overlap: Literal["queue", "allow"] = "queue") -> R:
        """Run the times of a span (RFC 3339) now: `{times, queued}`."""
        return self._ask("POST", f"{_at(name)}/backfill", {"from": from_, "until": until, "overlap": overlap})

    def runs(self, name: str, *, cursor: str = "", limit: int = 50) -> R:
        """`{items: [{scheduled_at, operation}], next_cursor}`, newest time first."""
        return self._ask("GET", f"{_at(name)}/runs?{urlencode({'cursor': cursor, 'limit': limit})}")


def _at(name: str) -> str:
    return f"/{quote_segment(name)}"
