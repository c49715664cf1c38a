"""Deadlines of all kinds, leases and heartbeats."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.clock import monotonic_s, sleep
from mesh.ids import operation_id
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, started
from tests.surface.checks import check_failure, check_problem
from tests.surface.gateways import ASYNC, Caller, token_for


class TestTimeouts:
    async def test_schedule_to_close_of_running_work(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P100: `timed_out` on /v1, `failed` in Nexus words; the agent is told to stop."""
        agent.replies(started(), Reply(202))
        operation = await caller.begin(
            await caller.register(agent.url), [("operation-timeout", "1500ms")], callback=receiver.url
        )
        call = await agent.until(1)
        assert 0 < int(call["operation-timeout"].removesuffix("ms")) <= 1500
        assert int(call["request-timeout"].removesuffix("ms")) <= 1500
        record = await caller.until(operation, state="timed_out")
        failure = record["failure"]
        assert failure["details"]["state"] == "failed"
        assert failure["cause"]["metadata"]["timeout"] == "schedule_to_close"
        result = await caller.result(operation)
        assert (result.status, result["nexus-operation-state"], result["mesh-failure-source"]) == (
            424,
            "failed",
            "gateway",
        )
        assert (await caller.get(f"/nexus/endpoints/e/services/s/o?token={operation}")).json["state"] == "failed"
        assert (await receiver.until(1))["nexus-operation-state"] == "failed"
        cancel = await agent.until(1, cancels=True)
        assert cancel["nexus-operation-token"] == "agent-token"
        events = await caller.events(operation)
        assert next(one for one in events if one["type"] == "timed_out")["reason"] == "schedule_to_close"

    async def test_schedule_to_close_within_the_wait(self, caller: Caller, agent: Actor) -> None:
        """P100, P12: the waiting request gets the 424 when the time is over, not when its own wait is."""
        agent.replies(started(), Reply(202))
        name = await caller.register(agent.url)
        asked_at_s = monotonic_s()
        answer = await caller.nexus(name, headers={"operation-timeout": "300ms", "prefer": "wait=20"})
        assert (answer.status, monotonic_s() - asked_at_s < 15) == (424, True)

    async def test_schedule_to_close_of_what_waits(self, caller: Caller) -> None:
        """P100: without any attempt."""
        operation = await caller.begin(await caller.register(None), [("operation-timeout", "300ms")])
        record = await caller.until(operation, state="timed_out")
        assert (record["attempt"], "blocked" in record) == (0, False)

    async def test_schedule_to_close_of_what_backs_off(self, caller: Caller, agent: Actor) -> None:
        """P100."""
        agent.replies(handler_error(503, "UNAVAILABLE"))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 60_000}})
        operation = await caller.begin(name, [("operation-timeout", "300ms")])
        await caller.until(operation, state="timed_out")

    async def test_the_request_ends_with_the_operation(self, caller: Caller, agent: Actor) -> None:
        """P99, P100: a start that is out is not waited for longer than the operation may last."""
        agent.holds()
        operation = await caller.begin(await caller.register(agent.url), [("operation-timeout", "1s")])
        assert int((await agent.until(1))["request-timeout"].removesuffix("ms")) <= 1000
        await caller.until(operation, state="timed_out")

    @pytest.mark.parametrize("where", ["request", "policy"])
    async def test_schedule_to_start(self, caller: Caller, agent: Actor, where: str) -> None:
        """P101: ends at the 201 or the result; over before: timed out."""
        timeouts = {"schedule_to_start_ms": 300}
        policy = timeouts if where == "policy" else {}
        fields: dict[str, Any] = {"timeouts": timeouts} if where == "request" else {}
        nobody = await caller.register(None, policy=policy)
        operation = (await caller.v1(nobody, [ASYNC], **fields)).json["id"]
        record = await caller.until(operation, state="timed_out")
        assert record["failure"]["cause"]["metadata"]["timeout"] == "schedule_to_start"
        agent.replies(started())
        running = (await caller.v1(await caller.register(agent.url, policy=policy), [ASYNC], **fields)).json["id"]
        await caller.until(running, state="started")
        probe = (await caller.v1(nobody, [ASYNC], **fields)).json["id"]
        await caller.until(probe, state="timed_out")
        assert (await caller.record(running))["state"] == "started"

    @pytest.mark.parametrize("where", ["request", "policy"])
    async def test_start_to_close(self, caller: Caller, agent: Actor, where: str) -> None:
        """P102: begins at the 201."""
        timeouts = {"start_to_close_ms": 300}
        policy = timeouts if where == "policy" else {}
        fields: dict[str, Any] = {"timeouts": timeouts} if where == "request" else {}
        agent.replies(started(), Reply(202))
        name = await caller.register(agent.url, policy=policy)
        operation = (await caller.v1(name, [ASYNC], **fields)).json["id"]
        record = await caller.until(operation, state="timed_out")
        assert record["failure"]["cause"]["metadata"]["timeout"] == "start_to_close"
        await agent.until(1, cancels=True)
        waits = (await caller.v1(await caller.register(None, policy=policy), [ASYNC], **fields)).json["id"]
        agent.replies(started(), Reply(202))
        again = (await caller.v1(name, [ASYNC], **fields)).json["id"]
        await caller.until(again, state="timed_out")
        assert (await caller.record(waits))["state"] == "scheduled"

    async def test_the_callers_limit_wins(self, caller: Caller, agent: Actor) -> None:
        """P100: over the endpoint's policy."""
        agent.replies(started(), Reply(202))
        name = await caller.register(agent.url, policy={"schedule_to_close_ms": 60_000})
        operation = await caller.begin(name, [("operation-timeout", "0.2s")])
        await caller.until(operation, state="timed_out")


async def beat(caller: Caller, *tasks: dict[str, Any]) -> list[str]:
    answer = await caller.post("/v1/tasks/heartbeat", {"tasks": tasks})
    assert answer.status == 200, answer
    return [one["status"] for one in answer.json["tasks"]]


class TestLeases:
    async def test_a_silent_agent_loses_its_attempt(self, caller: Caller, agent: Actor) -> None:
        """P103, P55: dispatched again with attempt 2; the zombie's completion, of any kind, is 409 `lease_lost`."""
        agent.replies(started())
        name = await caller.register(agent.url, policy={"heartbeat_ms": 500})
        operation = await caller.begin(name)
        zombie = await agent.until(1)
        second = await agent.until(2)
        assert (second.operation, second.attempt) == (operation, 2)
        assert 0.25 <= second.at_s - zombie.at_s <= 10
        await caller.until(operation, state="started", attempt=2)
        for state, body in (("succeeded", b"1"), ("failed", b'{"message":"x"}')):
            check_failure(await zombie.complete(state, body), 409, "CONFLICT", "lease_lost")
        assert await beat(caller, {"token": zombie.completion_token}) == ["lost"]
        assert (await second.complete(body=b"2")).status == 200
        assert (await caller.result(operation)).body == b"2"
        assert (await zombie.complete(body=b"1")).status == 409
        lost = next(one for one in await caller.events(operation) if one["type"] == "attempt_lost")
        assert (lost["reason"], lost["attempt"]) == ("heartbeat", 1)

    async def test_heartbeats_keep_it(self, caller: Caller, agent: Actor) -> None:
        """P103, P104."""
        agent.replies(started())
        name = await caller.register(agent.url, policy={"heartbeat_ms": 2_000})
        kept, silent = await caller.begin(name), await caller.begin(name)
        calls = {call.operation: call for call in (await agent.until(1), await agent.until(2))}
        end_s = monotonic_s() + 30
        while (await caller.record(silent))["attempt"] == 1:
            assert monotonic_s() < end_s
            assert await beat(caller, {"token": calls[kept].completion_token}) == ["ok"]
            await sleep(0.1)
        assert (await caller.record(kept))["attempt"] == 1
        assert (await calls[kept].complete()).status == 200

    async def test_a_201_may_ask_for_a_lease(self, caller: Caller, agent: Actor) -> None:
        """P103: `Mesh-Lease-Ms`, at least a second."""
        agent.replies(started(headers={"mesh-lease-ms": "1"}))
        await caller.begin(await caller.register(agent.url))
        first, second = await agent.until(1), await agent.until(2)
        assert 0.75 <= second.at_s - first.at_s <= 10

    async def test_the_first_heartbeat_makes_a_lease(self, caller: Caller, agent: Actor) -> None:
        """P103: without a policy."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        first = await agent.until(1)
        await caller.until(operation, state="started")
        assert await beat(caller, {"token": first.completion_token, "lease_ms": 1_000}) == ["ok"]
        assert (await agent.until(2)).attempt == 2
        check_failure(await first.complete(), 409, "CONFLICT", "lease_lost")

    async def test_without_a_lease_an_agent_may_be_silent(self, caller: Caller, agent: Actor) -> None:
        """P103: plain handlers know no heartbeats."""
        agent.replies(started())
        plain = await caller.begin(await caller.register(agent.url))
        leased = await caller.begin(await caller.register(agent.url, policy={"heartbeat_ms": 500}))
        await caller.until(leased, attempt=2)
        assert (await caller.record(plain))["attempt"] == 1

    async def test_statuses(self, caller: Caller, agent: Actor) -> None:
        """P104: one per task, in the order asked; a wanted end is said here too."""
        agent.replies(started())
        name = await caller.register(agent.url)
        operations = [await caller.begin(name) for _ in range(3)]
        for operation in operations:
            await caller.until(operation, state="started")
        calls = {call.operation: call for call in agent.starts}
        live, canceled, ended = [calls[operation] for operation in operations]
        await caller.cancel(canceled.operation)
        await ended.complete()
        statuses = await beat(
            caller,
            {"token": "x"},
            {"token": live.completion_token, "lease_ms": 60_000},
            {"token": canceled.completion_token, "lease_ms": 60_000},
            {"token": ended.completion_token},
            {"token": token_for(operation_id())},
            {"token": token_for(live.operation, attempt=2)},
            {"token": token_for(live.operation, expires_at_s=1)},
        )
        assert statuses == ["invalid", "ok", "cancel", "ended", "unknown", "lost", "invalid"]

    async def test_bad_heartbeats(self, caller: Caller) -> None:
        """P104."""
        for body, status, code in (
            (b"{", 400, "json_invalid"),
            ({}, 422, "body_invalid"),
            ({"tasks": [{}]}, 422, "body_invalid"),
            ({"tasks": [{"token": "x", "lease_ms": 1}]}, 422, "body_invalid"),
            ({"tasks": [{"token": "x"}] * 1001}, 422, "body_invalid"),
        ):
            check_problem(await caller.post("/v1/tasks/heartbeat", body), status, code)
        assert await beat(caller) == []


async def test_a_lease_counts_from_the_201(caller: Caller, agent: Actor) -> None:
    """P103: a start that is out is covered by its request's own time."""

    async def script(call: Call, _writer: object) -> Reply:
        if call.attempt == 1:
            await asyncio.wait([asyncio.ensure_future(agent.until(2, 5))], timeout=1.0)
            return as_json("slow but sync")
        return as_json("second")

    agent.script = script
    answer = await caller.nexus(await caller.register(agent.url, policy={"heartbeat_ms": 500}))
    assert (answer.json, len(agent.calls)) == ("slow but sync", 1)
