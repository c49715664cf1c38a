"""Completions by token: what is taken, what is refused, and every order in which things may arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.ids import operation_id
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, started
from tests.surface.checks import check_failure
from tests.surface.gateways import Caller, token_for

JSON = {"content-type": "application/json"}


async def running(caller: Caller, agent: Actor, **options: Any) -> Call:
    """An operation whose agent answered 201."""
    agent.replies(started())
    operation = await caller.begin(await caller.register(agent.url), **options)
    call = await agent.until(1)
    await caller.until(operation, state="started")
    return call


class TestAccepted:
    @pytest.mark.parametrize(
        ("body", "kind"),
        [(b'{ "x": 1 }', "application/json"), (b"\x00\xff", "application/octet-stream"), (b"", None)],
        ids=["json", "bytes", "null"],
    )
    async def test_a_result_byte_for_byte(self, caller: Caller, agent: Actor, body: bytes, kind: str | None) -> None:
        """P50: 200 with an empty body."""
        call = await running(caller, agent)
        answer = await call.complete("succeeded", body, {"content-type": kind} if kind else {})
        assert (answer.status, answer.body) == (200, b"")
        result = await caller.result(call.operation)
        assert (result.status, result.body, result.get("content-type")) == (200, body, kind)

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    @pytest.mark.parametrize(
        "body",
        [
            b'{"message":"m","metadata":{"type":"nexus.OperationError"},"details":{"state":"failed"}}',
            b'{"message":"m"}',
        ],
        ids=["operation-error", "plain-cause"],
    )
    async def test_a_failure_in_both_shapes(self, caller: Caller, agent: Actor, state: str, body: bytes) -> None:
        """P50: the header's state rules; a plain cause is wrapped."""
        call = await running(caller, agent)
        assert (await call.complete(state, body)).status == 200
        result = await caller.result(call.operation)
        assert (result.status, result["nexus-operation-state"]) == (424, state)
        assert result.json["details"]["state"] == state
        assert result.json["message"] == "m"
        assert (await caller.record(call.operation))["state"] == state

    async def test_times_links_and_chunks(self, caller: Caller, agent: Actor) -> None:
        """P50: links travel on to the caller."""
        call = await running(caller, agent)
        given = {
            "nexus-operation-token": "agent-token",
            "nexus-operation-start-time": "Sun, 06 Nov 1994 08:49:37 GMT",
            "nexus-operation-close-time": "2026-11-22T10:00:00.123Z",
            "nexus-link": '<http://a/>; type="b"',
            "mesh-operation-id": call.operation,
            "transfer-encoding": "chunked",
            **JSON,
        }
        assert (await call.complete("succeeded", b"1\r\n7\r\n0\r\n\r\n", given)).status == 200
        result = await caller.result(call.operation)
        assert (result.body, result.all("nexus-link")[1:]) == (b"7", ['<http://a/>; type="b"'])


class TestDuplicates:
    async def test_equal_is_200_other_is_409_the_first_stands(self, caller: Caller, agent: Actor) -> None:
        """P51."""
        call = await running(caller, agent)
        assert (await call.complete(body=b"1")).status == 200
        before = await caller.record(call.operation)
        assert (await call.complete(body=b"1")).status == 200
        for state, body, headers in (
            ("succeeded", b"2", {}),
            ("succeeded", b"1", {"content-type": "text/x"}),
            ("failed", b'{"message":"x"}', {}),
            ("canceled", b'{"message":"x"}', {}),
        ):
            answer = await call.complete(state, body, headers)
            check_failure(answer, 409, "CONFLICT", "other_outcome")
            assert answer["mesh-operation-id"] == call.operation
        assert await caller.record(call.operation) == before

    async def test_twenty_at_once_are_one_event(self, caller: Caller, agent: Actor) -> None:
        """P51."""
        call = await running(caller, agent)
        answers = await asyncio.gather(*[call.complete(body=b"%d" % (number % 2)) for number in range(20)])
        assert sorted({one.status for one in answers}) == [200, 409]
        assert sum(one.status == 200 for one in answers) == 10
        assert (await caller.types(call.operation)).count("succeeded") == 1


class TestTokens:
    async def test_missing_forged_cut_expired_foreign(self, caller: Caller, agent: Actor) -> None:
        """P52: 401, and nothing changes."""
        call = await running(caller, agent)
        token = call.completion_token
        for wrong in (
            "",
            "x",
            token[:-1],
            token[:-1] + ("0" if token[-1] != "0" else "1"),
            token.replace(call.operation, operation_id()),
            token_for(call.operation, expires_at_s=1_000),
            "m1.t1." + "9" * 600,
        ):
            answer = await call.complete(token=wrong)
            check_failure(answer, 401, "UNAUTHENTICATED")
            assert answer["www-authenticate"].startswith("Bearer")
        answer = await call.complete(headers={"mesh-operation-id": operation_id()})
        check_failure(answer, 401, "UNAUTHENTICATED", "token_foreign")
        check_failure(
            await call.complete(token=token_for(call.operation, run=2)), 401, "UNAUTHENTICATED", "token_stale"
        )
        missing = await caller.post("/nexus/callback", b"1", {"nexus-operation-state": "succeeded"})
        check_failure(missing, 401, "UNAUTHENTICATED", "token_missing")
        assert (await caller.record(call.operation))["state"] == "started"
        assert (await call.complete()).status == 200

    async def test_a_deleted_operation_is_gone(self, caller: Caller, agent: Actor) -> None:
        """P52: a genuine token tells 410 from 401."""
        call = await running(caller, agent)
        answer = await call.complete(token=token_for(operation_id()))
        assert (answer.status, answer.code) == (410, "operation_gone")


class TestMalformed:
    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"nexus-operation-state": "running"}, b"1"),
            ({"nexus-operation-state": "Succeeded"}, b"1"),
            ({"nexus-operation-state": ""}, b"1"),
            ({}, b"1"),
            ({"nexus-operation-state": "failed"}, b'{"message":"x"}'),
            ({"nexus-operation-state": "failed", **JSON}, b"{"),
            ({"nexus-operation-state": "failed", **JSON}, b"[]"),
            ({"nexus-operation-state": "canceled", **JSON}, b'{"message":1}'),
            ({"nexus-operation-state": "succeeded", "nexus-operation-start-time": "yesterday"}, b"1"),
            ({"nexus-operation-state": "succeeded", "nexus-operation-close-time": "12:00"}, b"1"),
            ({"nexus-operation-state": "succeeded", "nexus-link": "x"}, b"1"),
            ({"nexus-operation-state": "succeeded", "content-encoding": "gzip"}, b"1"),
            ({"nexus-operation-state": "succeeded", "nexus-operation-token": "x" * 4097}, b"1"),
        ],
    )
    async def test_400(self, caller: Caller, agent: Actor, headers: dict[str, str], body: bytes) -> None:
        """P53: nothing changes."""
        call = await running(caller, agent)
        answer = await caller.post("/nexus/callback", body, {"token": call.completion_token, **headers})
        check_failure(answer, 400, "BAD_REQUEST")
        assert (await caller.record(call.operation))["state"] == "started"

    async def test_other_methods(self, caller: Caller, agent: Actor) -> None:
        """P2."""
        call = await running(caller, agent)
        check_failure(await caller.get("/nexus/callback"), 400, "BAD_REQUEST", "method_not_supported")
        assert (await caller.record(call.operation))["state"] == "started"


class TestOrder:
    @pytest.mark.parametrize(
        "late",
        [
            started("too-late"),
            as_json("other"),
            handler_error(503, "UNAVAILABLE"),
            handler_error(400, "BAD_REQUEST"),
            b"garbage\r\n\r\n",
        ],
        ids=["201", "200", "503", "400", "garbage"],
    )
    async def test_before_the_start_reply(
        self, caller: Caller, agent: Actor, receiver: Actor, late: Reply | bytes
    ) -> None:
        """P54: the completion stands, whatever the start is answered afterwards."""
        gate = asyncio.Event()

        async def script(_call: Call, _writer: object) -> Reply | bytes:
            await gate.wait()
            return late

        agent.script = script
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        call = await agent.until(1)
        assert (await call.complete(body=b'"early"')).status == 200
        assert (await caller.result(operation)).json == "early"
        gate.set()
        await call.answered.wait()
        assert (await receiver.until(1)).json == "early"
        await caller.until_delivery(operation, "delivered")
        await caller.until_gauge("mesh_tries_in_flight", 0)
        assert (await caller.result(operation)).json == "early"
        assert await caller.types(operation) == ["accepted", "dispatched", "succeeded", "callback_delivered"]
        assert (len(agent.calls), len(receiver.calls)) == (1, 1)

    async def test_before_the_start_reply_within_the_wait(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P54, P80: the request gets it, and no callback is owed."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        asked = asyncio.create_task(caller.nexus(name, headers={"prefer": "wait=20"}, callback=receiver.url))
        call = await agent.until(1)
        assert (await call.complete(body=b'"early"')).status == 200
        assert (await asked).json == "early"
        gate.set()
        await call.answered.wait()
        await caller.until_gauge("mesh_tries_in_flight", 0)
        assert [one["state"] for one in await caller.deliveries(call.operation)] == ["dropped"]
        assert receiver.calls == []

    async def test_while_it_backs_off(self, caller: Caller, agent: Actor) -> None:
        """P54: an agent that answered 503 and did the work all the same; nothing is sent again."""
        agent.replies(handler_error(503, "UNAVAILABLE"))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 200}})
        operation = await caller.begin(name)
        call = await agent.until(1)
        await caller.until(operation, state="backing_off")
        assert (await call.complete(body=b"5")).status == 200
        assert (await caller.result(operation)).body == b"5"
        other = await caller.begin(name)
        await caller.until(other, attempt=2)
        assert [one.operation for one in agent.calls].count(operation) == 1

    async def test_by_an_earlier_attempt(self, caller: Caller, agent: Actor) -> None:
        """P54: without a lease any attempt may succeed, failures of a superseded one are dropped."""
        gate = asyncio.Event()

        async def script(call: Call, _writer: object) -> Reply:
            if call.attempt == 1:
                return handler_error(503, "UNAVAILABLE")
            await gate.wait()
            return as_json("second")

        agent.script = script
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        operation = await caller.begin(name)
        first = await agent.until(1)
        await agent.until(2)
        assert (await first.complete("failed", b'{"message":"x"}')).status == 200
        assert (await caller.record(operation))["state"] == "scheduled"
        assert (await first.complete(body=b'"first"')).status == 200
        gate.set()
        assert (await caller.result(operation)).json == "first"

    async def test_a_dropped_failure_leaves_the_first_request_waiting(self, caller: Caller, agent: Actor) -> None:
        """P54: it still gets the outcome of the attempt that counts."""
        gate = asyncio.Event()

        async def script(call: Call, _writer: object) -> Reply:
            if call.attempt == 1:
                return handler_error(503, "UNAVAILABLE")
            await gate.wait()
            return as_json("second")

        agent.script = script
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        asked = asyncio.create_task(caller.nexus(name, headers={"prefer": "wait=20"}))
        first = await agent.until(1)
        await agent.until(2)
        assert (await first.complete("failed", b'{"message":"x"}')).status == 200
        gate.set()
        assert (await asked).json == "second"

    async def test_after_a_cancel(self, caller: Caller) -> None:
        """P54: what was canceled before it ran is over."""
        operation = await caller.begin(await caller.register(None))
        await caller.until(operation, blocked="no_instance")
        await caller.cancel(operation)
        token = token_for(operation)
        answer = await caller.post(
            "/nexus/callback", b"1", {"token": token, "nexus-operation-state": "succeeded", **JSON}
        )
        check_failure(answer, 409, "CONFLICT", "other_outcome")
        assert (await caller.record(operation))["state"] == "canceled"

    async def test_after_the_deadline(self, caller: Caller, agent: Actor) -> None:
        """P54: 409; the time-out stands."""
        agent.replies(started(), Reply(202))
        operation = await caller.begin(await caller.register(agent.url), [("operation-timeout", "1s")])
        call = await agent.until(1)
        await caller.until(operation, state="timed_out")
        check_failure(await call.complete(), 409, "CONFLICT", "other_outcome")
        assert (await caller.record(operation))["state"] == "timed_out"
