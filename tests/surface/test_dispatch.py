"""How work reaches agents: retries, waiting without attempts, limits, the breaker, and agents that behave badly."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, started
from tests.surface.gateways import Caller, unused_port

QUICK = {"retry": {"initial_ms": 10, "jitter": 0}, "breaker": {"failures": 0}}


class TestRetry:
    @pytest.mark.parametrize(
        "reply",
        [
            handler_error(503, "UNAVAILABLE"),
            handler_error(429, "RESOURCE_EXHAUSTED"),
            handler_error(408, "REQUEST_TIMEOUT"),
            handler_error(500, "INTERNAL"),
            handler_error(520, "UPSTREAM_TIMEOUT"),
            Reply(500, b"oops"),
            Reply(418),
            Reply(204),
            Reply(202),
            Reply(301, headers={"location": "http://127.0.0.1:1/"}),
            Reply(424),
            Reply(201, b"not json", {"content-type": "application/json"}),
            as_json({"token": "", "state": "running"}, 201),
            as_json({"token": "t", "state": "done"}, 201),
            as_json({"token": "t\n", "state": "running"}, 201),
            Reply(201, b'{"token":"t","state":"running"}'),
        ],
    )
    async def test_worth_repeating(self, caller: Caller, agent: Actor, reply: Reply) -> None:
        """P43, P90: the same request id, token per attempt, body; the next attempt's number."""
        agent.replies(reply, as_json("second"))
        answer = await caller.nexus(await caller.register(agent.url, policy=QUICK), b'{"x":1}')
        assert (answer.status, answer.json) == (200, "second")
        first, second = agent.calls
        assert (first.attempt, second.attempt, first.body, second.body) == (1, 2, b'{"x":1}', b'{"x":1}')
        assert first["nexus-request-id"] == second["nexus-request-id"] == f"{first.operation}.1"
        assert first.completion_token != second.completion_token

    async def test_back_off_grows(self, caller: Caller, agent: Actor) -> None:
        """P90: initial, times the factor, up to the maximum."""
        agent.replies(handler_error(503, "UNAVAILABLE"))
        policy = {"retry": {"initial_ms": 100, "factor": 2, "max_ms": 300, "jitter": 0}, "breaker": {"failures": 0}}
        wanted = (0.1, 0.2, 0.3, 0.3)
        late_s: list[float] = []
        for _ in range(4):  # the best one counts: a busy machine is late now and then, a wrong pause is always
            begun = len(agent.calls)
            operation = await caller.begin(await caller.register(agent.url, policy=policy))
            calls = [await agent.until(begun + number) for number in range(1, 6)]
            await caller.cancel(operation)
            await caller.until(operation, state="canceled")
            gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(calls)]
            assert all(pause - 0.005 <= gap for gap, pause in zip(gaps, wanted, strict=True)), gaps
            late_s.append(max(gap - pause for gap, pause in zip(gaps, wanted, strict=True)))
            if late_s[-1] <= 0.15:
                break
        assert min(late_s) <= 0.15, late_s

    async def test_retry_after_is_kept(self, caller: Caller, agent: Actor) -> None:
        """P91."""
        reply = handler_error(503, "UNAVAILABLE")
        reply.headers.append(("retry-after", "1"))
        agent.replies(reply, as_json(1))
        await caller.begin(await caller.register(agent.url, policy=QUICK))
        first, second = await agent.until(1), await agent.until(2)
        assert 0.95 <= second.at_s - first.at_s <= 10

    async def test_no_attempt_left(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P92: 424 with the last failure as cause, never a replayed 503."""
        agent.replies(handler_error(503, "UNAVAILABLE", "busy"))
        policy = QUICK | {"retry": {"initial_ms": 10, "max_attempts": 3}}
        answer = await caller.nexus(await caller.register(agent.url, policy=policy), callback=receiver.url)
        assert (answer.status, answer["nexus-operation-state"], answer["mesh-failure-source"]) == (
            424,
            "failed",
            "gateway",
        )
        assert answer.json["metadata"]["reason"] == "attempts_exhausted"
        assert (answer.json["cause"]["message"], answer.json["cause"]["details"]["type"]) == ("busy", "UNAVAILABLE")
        assert [call.attempt for call in agent.calls] == [1, 2, 3]
        operation = agent.calls[0].operation
        record = await caller.record(operation)
        assert (record["state"], record["attempt"]) == ("failed", 3)
        assert (await caller.events(operation))[-2:-1][0]["type"] in ("attempt_failed", "failed")
        assert (await caller.result(operation)).status == 424


class TestWaiting:
    async def test_connection_refused_waits_without_an_attempt(self, caller: Caller) -> None:
        """P93: blocked `unreachable`; it runs as attempt 1 once the agent is up."""
        port = await unused_port()
        name = await caller.register(f"http://127.0.0.1:{port}")
        operation = await caller.begin(name)
        record = await caller.until(operation, blocked="unreachable")
        assert (record["state"], record["attempt"]) == ("scheduled", 0)
        agent = await Actor().start(port)
        call = await agent.until(1)
        assert (call.operation, call.attempt) == (operation, 1)
        record = await caller.until(operation, state="succeeded")
        assert (record["attempt"], "blocked" in record) == (1, False)
        await agent.stop()

    async def test_no_instance_waits_until_one_registers(self, caller: Caller, agent: Actor) -> None:
        """P93."""
        name = await caller.register(None)
        operations = [await caller.begin(name) for _ in range(3)]
        for operation in operations:
            assert (await caller.until(operation, blocked="no_instance"))["attempt"] == 0
        body = {"url": agent.url, "ttl_ms": 5_000}
        assert (await caller.ask("PUT", f"/v1/endpoints/{name}/instances/i1", (), body)).status == 201
        await agent.until(3)
        assert sorted(call.operation for call in agent.starts) == sorted(operations)

    async def test_a_start_that_waits_may_be_answered_within_its_wait(self, caller: Caller, agent: Actor) -> None:
        """P14, P93."""
        name = await caller.register(None)
        asked = asyncio.create_task(caller.nexus(name, headers={"prefer": "wait=10"}))
        await caller.until_gauge("mesh_waits_open", 2)
        await caller.ask("PUT", f"/v1/endpoints/{name}/instances/i1", (), {"url": agent.url, "ttl_ms": 5_000})
        assert (await asked).status == 200

    async def test_pause_and_resume(self, caller: Caller, agent: Actor) -> None:
        """P94: kept, not dispatched, then in the order of acceptance."""
        name = await caller.register(agent.url)
        assert (await caller.post(f"/v1/endpoints/{name}/pause")).status == 200
        operations = [await caller.begin(name) for _ in range(5)]
        for operation in operations:
            await caller.until(operation, blocked="paused")
        assert agent.calls == []
        assert (await caller.post(f"/v1/endpoints/{name}/resume")).status == 200
        await agent.until(5)
        assert [call.operation for call in agent.calls] == operations

    async def test_a_deleted_endpoint(self, caller: Caller) -> None:
        """P93: what waits stays, and can be canceled."""
        name = await caller.register(None)
        operation = await caller.begin(name)
        assert (await caller.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        assert (await caller.nexus(name)).status == 404
        await caller.until(operation, blocked="endpoint_deleted")
        assert (await caller.cancel(operation)).json["state"] == "canceled"


class TestLimits:
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_max_concurrency_is_exact(self, caller: Caller, agent: Actor, asynchronous: bool) -> None:
        """P95: running operations, those that answered 201 included."""
        running: set[str] = set()
        most = 0
        gates: dict[str, asyncio.Event] = {}

        async def script(call: Call, _writer: object) -> Reply:
            nonlocal most
            running.add(call.operation)
            most = max(most, len(running))
            if asynchronous:
                gates[call.operation] = asyncio.Event()
                return started()
            await sleep(0.02)
            running.discard(call.operation)
            return as_json(None)

        agent.script = script
        name = await caller.register(agent.url, policy={"max_concurrency": 3})
        operations = await asyncio.gather(*[caller.begin(name) for _ in range(20)])
        if asynchronous:
            for number in range(1, 21):
                call = await agent.until(number)
                await caller.until(call.operation, state="started")
                if number >= 3:
                    ended = running.pop()
                    first = next(one for one in agent.starts if one.operation == ended)
                    assert (await first.complete()).status == 200
            for ended in tuple(running):
                await next(one for one in agent.starts if one.operation == ended).complete()
        for operation in operations:
            await caller.until(operation, state="succeeded")
        assert most == 3
        assert len(agent.calls) == 20

    async def test_waiting_for_a_slot_is_shown(self, caller: Caller, agent: Actor) -> None:
        """P95."""
        gate = agent.holds()
        name = await caller.register(agent.url, policy={"max_concurrency": 1})
        first, second = await caller.begin(name), await caller.begin(name)
        await caller.until(second, blocked="concurrency")
        gate.set()
        for operation in (first, second):
            await caller.until(operation, state="succeeded")

    async def test_rate(self, caller: Caller, agent: Actor) -> None:
        """P97: dispatches per second."""
        name = await caller.register(agent.url, policy={"rate_per_s": 20})
        asked_at_s = monotonic_s()
        operations = await asyncio.gather(*[caller.begin(name) for _ in range(20)])
        for operation in operations:
            await caller.until(operation, state="succeeded")
        took_s = monotonic_s() - asked_at_s
        assert 0.6 <= took_s <= 15

    async def test_the_breaker(self, caller: Caller, agent: Actor) -> None:
        """P96: failures in a row open it; others are not touched; no attempt is consumed."""
        agent.replies(Reply(503, b"no healthy upstream"))
        policy = {"retry": {"initial_ms": 10, "max_ms": 10}, "breaker": {"failures": 3, "open_ms": 60_000}}
        name = await caller.register(agent.url, policy=policy)
        first = await caller.begin(name)
        await agent.until(3)
        await caller.until(first, blocked="breaker")
        later = await caller.begin(name)
        await caller.until(later, blocked="breaker")
        assert (await caller.record(later))["attempt"] == 0
        assert len(agent.calls) == 3
        record = (await caller.get(f"/v1/endpoints/{name}")).json
        assert (record["health"], "breaker" in str(record)) == ("suspect", True)
        agent.replies(as_json("well"))
        assert (await caller.nexus(await caller.register(agent.url, policy=policy))).status == 200
        for operation in (first, later):
            await caller.cancel(operation)

    async def test_the_probe_of_a_breaker(self, caller: Caller, agent: Actor) -> None:
        """P96: it decides when the time is over; then the others follow."""
        agent.replies(Reply(503, b"no healthy upstream"))
        policy = {"retry": {"initial_ms": 10, "max_ms": 10}, "breaker": {"failures": 3, "open_ms": 1_000}}
        name = await caller.register(agent.url, policy=policy)
        first = await caller.begin(name)
        await caller.until(first, blocked="breaker")
        agent.replies(as_json("well"))
        later = await caller.begin(name)
        probe = await agent.until(4)
        assert 0.9 <= probe.at_s - agent.calls[2].at_s <= 15
        for operation in (first, later):
            await caller.until(operation, state="succeeded")

    async def test_refusals_do_not_open_the_breaker(self, caller: Caller, agent: Actor) -> None:
        """P96: a caller's mistake is no fault of the agent."""
        agent.replies(handler_error(400, "BAD_REQUEST"))
        name = await caller.register(agent.url, policy={"breaker": {"failures": 2}})
        for _ in range(5):
            assert (await caller.nexus(name)).status == 400
