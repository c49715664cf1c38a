"""Starts that begin later, over both surfaces (P360, P361)."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.clock import from_rfc3339, monotonic_s, now_ms, to_rfc3339
from tests.surface.actors import Actor
from tests.surface.checks import check_failure, check_problem
from tests.surface.gateways import Caller

HOUR_MS = 3_600_000
YEAR_MS = 365 * 86_400_000


class TestLater:
    async def test_v1_waits_and_then_runs(self, caller: Caller, agent: Actor) -> None:
        """P360: durable at once, not sent before its time; the record says when."""
        name = await caller.register(agent.url)
        answer = await caller.v1(name, {"prefer": "respond-async"}, delay_ms=600, labels={"a": "b"})
        assert (answer.status, answer.json["state"], answer.json["attempt"]) == (202, "scheduled", 0)
        record = answer.json
        assert from_rfc3339(record["starts_at"]) == from_rfc3339(record["created_at"]) + 600
        call = await agent.until(1)
        assert call.operation == record["id"]
        ended = await caller.until(record["id"], state="succeeded")
        events = await caller.events(record["id"])
        assert [event["type"] for event in events] == ["accepted", "dispatched", "succeeded"]
        assert from_rfc3339(events[1]["at"]) >= from_rfc3339(record["starts_at"])
        assert ended["starts_at"] == record["starts_at"]

    async def test_within_the_wait_the_result_comes(self, caller: Caller, agent: Actor) -> None:
        """P360: a caller with more patience than delay gets its answer on the same request, on both surfaces."""
        name = await caller.register(agent.url)
        answer = await caller.v1(name, {"prefer": "wait=20"}, delay_ms=200)
        assert (answer.status, answer.json["state"]) == (200, "succeeded")
        at = to_rfc3339(now_ms() + 200)
        answer = await caller.nexus(name, headers={"prefer": "wait=20", "mesh-start-at": at})
        assert (answer.status, answer["nexus-operation-state"]) == (200, "succeeded")

    async def test_no_wait_for_what_begins_after_it(self, caller: Caller, agent: Actor) -> None:
        """P360: 202 and 201 at once, whatever the wait, and no reason to ask before."""
        name = await caller.register(agent.url)
        asked_at_s = monotonic_s()
        answer = await caller.v1(name, {"prefer": "wait=15"}, start_at=to_rfc3339(now_ms() + HOUR_MS // 2))
        assert (answer.status, "blocked" in answer.json) == (202, False)
        assert 1_700 <= int(answer["retry-after"]) <= 1_800
        nexus = await caller.nexus(name, headers={"mesh-delay": "60m", "request-timeout": "15s"})
        assert nexus.status == 201
        assert monotonic_s() - asked_at_s < 10
        starts_at = (await caller.record(nexus.json["token"]))["starts_at"]
        assert abs(from_rfc3339(starts_at) - now_ms() - HOUR_MS) < 60_000
        assert agent.calls == []

    async def test_cancel_before_it(self, caller: Caller, agent: Actor) -> None:
        """P361: ended at once; nothing ever reaches the agent."""
        name = await caller.register(agent.url)
        operation = (await caller.v1(name, delay_ms=HOUR_MS)).json["id"]
        assert (await caller.cancel(operation)).json["state"] == "canceled"
        assert agent.calls == []

    async def test_timeouts_count_from_its_time(self, caller: Caller, agent: Actor) -> None:
        """P361."""
        name = await caller.register(agent.url)
        timeouts = {"schedule_to_close_ms": 5_000, "schedule_to_start_ms": 1_000}
        record = (await caller.v1(name, delay_ms=HOUR_MS, timeouts=timeouts)).json
        assert from_rfc3339(record["deadline"]) == from_rfc3339(record["starts_at"]) + 5_000
        # What the answer says of it is what is stored.
        assert (await caller.record(record["id"]))["deadline"] == record["deadline"]

    async def test_a_repeat_finds_it_whenever_it_asks(self, caller: Caller, agent: Actor) -> None:
        """P360, P15: when to begin is no content."""
        name, key = await caller.register(agent.url), {"idempotency-key": "later-1"}
        first = await caller.v1(name, key, delay_ms=HOUR_MS)
        again = await caller.v1(name, key, delay_ms=5)
        assert (again.json["id"], again["idempotency-replayed"]) == (first.json["id"], "true")
        assert again.json["starts_at"] == first.json["starts_at"]

    async def test_pollers_get_it_at_its_time(self, caller: Caller) -> None:
        """P360, P282: a poll that waits does not get it before."""
        name = "later-pulled"
        spec = {"target": {"kind": "pull"}}
        assert (await caller.ask("PUT", f"/v1/endpoints/{name}", (), spec)).status == 201
        poll = {"instance": "p-1", "wait_ms": 10_000}
        operation = (await caller.v1(name, {"prefer": "respond-async"}, delay_ms=300)).json["id"]
        answer = await caller.post(f"/v1/endpoints/{name}/poll", poll)
        (task,) = answer.json["tasks"]
        record = await caller.record(operation)
        assert task["operation_id"] == operation
        assert now_ms() >= from_rfc3339(record["starts_at"])

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"delay_ms": -1}, "/delay_ms"),
            ({"delay_ms": YEAR_MS + 1}, "/delay_ms"),
            ({"delay_ms": "5s"}, "/delay_ms"),
            ({"delay_ms": 5, "start_at": "2036-01-01T00:00:00Z"}, "/start_at"),
            ({"start_at": "tomorrow"}, "/start_at"),
            ({"start_at": "2026-11-23T10:00:00"}, "/start_at"),
            ({"start_at": "9999-01-01T00:00:00Z"}, "/start_at"),
        ],
    )
    async def test_bad_times(self, caller: Caller, fields: dict[str, Any], pointer: str) -> None:
        """P360."""
        answer = await caller.v1("nobody", **fields)
        check_problem(answer, 422, "body_invalid")
        assert answer.json["errors"][0]["pointer"] == pointer

    @pytest.mark.parametrize(
        "headers", [{"mesh-delay": "soon"}, {"mesh-start-at": "x"}, {"mesh-delay": "1s", "mesh-start-at": "x"}]
    )
    async def test_bad_times_over_nexus(self, caller: Caller, headers: dict[str, str]) -> None:
        """P360."""
        answer = await caller.nexus("nobody", headers=headers)
        code = "timeout_invalid" if headers == {"mesh-delay": "soon"} else "start_time_invalid"
        check_failure(answer, 400, "BAD_REQUEST", code)
