"""Cancel in all its forms, and the two reads of older Nexus clients."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest

from mesh.clock import monotonic_s
from mesh.ids import operation_id
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, operation_error, started
from tests.surface.checks import check_failure
from tests.surface.gateways import Caller

ROUTE = "/nexus/endpoints/e/services/s/o"


class TestAnswers:
    @pytest.mark.parametrize(
        ("path", "headers"),
        [
            ("/cancel", {"nexus-operation-token": "{}"}),
            ("/cancel?token={}", {}),
            ("/cancel?token=other", {"nexus-operation-token": "{}"}),
            ("/{}/cancel", {}),
        ],
        ids=["header", "query", "header-wins", "older-path"],
    )
    async def test_202_for_any_way_to_say_the_token(
        self, caller: Caller, agent: Actor, path: str, headers: dict[str, str]
    ) -> None:
        """P30."""
        agent.replies(started(), Reply(202))
        operation = await caller.begin(await caller.register(agent.url))
        await caller.until(operation, state="started")
        given = {name: value.format(operation) for name, value in headers.items()}
        answer = await caller.post(ROUTE + path.format(operation), headers=given)
        assert (answer.status, answer.body) == (202, b"")
        assert (await agent.until(1, cancels=True))["nexus-operation-token"] == "agent-token"

    async def test_no_token_and_unknown_ones(self, caller: Caller) -> None:
        """P30."""
        check_failure(await caller.post(ROUTE + "/cancel"), 400, "BAD_REQUEST", "token_missing")
        for path in ("", "/result"):  # P33
            check_failure(await caller.get(ROUTE + path), 400, "BAD_REQUEST", "token_missing")
        for token in ("x", operation_id(), quote("ü ?", safe="")):
            check_failure(await caller.post(f"{ROUTE}/cancel?token={token}"), 404, "NOT_FOUND", "unknown_operation")
        assert (await caller.cancel(operation_id())).code == "unknown_operation"

    async def test_repeats_and_ended_operations_are_202_and_change_nothing(self, caller: Caller, agent: Actor) -> None:
        """P30."""
        operation = (await caller.nexus(await caller.register(agent.url)))["mesh-operation-id"]
        before = await caller.record(operation)
        for _ in range(2):
            assert (await caller.post(f"{ROUTE}/cancel?token={operation}")).status == 202
            assert (await caller.cancel(operation)).status == 202
        assert (await caller.record(operation), agent.cancels) == (before, [])

    async def test_v1_answers_the_record(self, caller: Caller, agent: Actor) -> None:
        """P70."""
        agent.replies(started(), Reply(202))
        operation = await caller.begin(await caller.register(agent.url))
        await caller.until(operation, state="started")
        answer = await caller.cancel(operation)
        assert (answer.status, answer.json["state"], answer.json["cancel_requested"]) == (202, "started", True)


class TestEffect:
    async def test_what_never_left_is_canceled_at_once(self, caller: Caller, receiver: Actor) -> None:
        """P31: with its callback."""
        operation = await caller.begin(await caller.register(None), callback=receiver.url)
        await caller.until(operation, blocked="no_instance")
        assert (await caller.cancel(operation)).json["state"] == "canceled"
        told = await receiver.until(1)
        assert (told["nexus-operation-state"], told.json["details"]["state"]) == ("canceled", "canceled")
        late = await caller.result(operation)
        assert (late.status, late["nexus-operation-state"]) == (424, "canceled")
        assert late["mesh-failure-source"] == "gateway"

    async def test_what_backs_off_is_canceled_at_once(self, caller: Caller, agent: Actor) -> None:
        """P31: and never sent again."""
        agent.replies(handler_error(503, "UNAVAILABLE"))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 300}})
        operation = await caller.begin(name)
        await caller.until(operation, state="backing_off")
        assert (await caller.cancel(operation)).json["state"] == "canceled"
        other = await caller.begin(name)
        await caller.until(other, attempt=2)
        assert [call.operation for call in agent.starts].count(operation) == 1

    async def test_the_agent_decides_about_running_work(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P31, P32: a cancel is a request; `succeeded` is still possible."""
        name = await caller.register(agent.url)
        for state, status in (("canceled", 424), ("succeeded", 200)):
            agent.replies(started("tok/en"), Reply(202))
            operation = await caller.begin(name, callback=receiver.url)
            await caller.until(operation, state="started")
            call = next(one for one in agent.starts if one.operation == operation)
            await caller.cancel(operation)
            cancel = await agent.until(1 if state == "canceled" else 2, cancels=True)
            assert (cancel.path, cancel["nexus-operation-token"]) == ("/svc/op/cancel", "tok/en")
            assert (cancel["mesh-operation-id"], cancel.body) == (operation, b"")
            await caller.until_delivery(operation, "delivered", "cancel")
            assert not (await caller.record(operation))["closed_at"]
            body = b'{"message":"stopped"}' if state == "canceled" else b"1"
            assert (await call.complete(state, body)).status == 200
            assert (await caller.result(operation)).status == status
            assert (await receiver.until(1 if state == "canceled" else 2))["nexus-operation-state"] == state

    async def test_a_cancel_before_the_start_reply_waits_for_the_token(self, caller: Caller, agent: Actor) -> None:
        """P31: remembered, sent once the agent's token is known."""
        gate = asyncio.Event()

        async def script(call: Call, _writer: object) -> Reply:
            if not call.is_cancel:
                await gate.wait()
                return started("late-token")
            return Reply(202)

        agent.script = script
        operation = await caller.begin(await caller.register(agent.url))
        await agent.until(1)
        assert (await caller.cancel(operation)).json["state"] == "scheduled"
        assert agent.cancels == []
        gate.set()
        assert (await agent.until(1, cancels=True))["nexus-operation-token"] == "late-token"
        assert "cancel_requested" in await caller.types(operation)

    @pytest.mark.parametrize(
        ("reply", "state"),
        [
            (as_json(1), "succeeded"),
            (operation_error("failed"), "failed"),
            (operation_error("canceled"), "canceled"),
            (handler_error(503, "UNAVAILABLE"), "canceled"),
        ],
    )
    async def test_a_cancel_while_the_start_is_out_and_another_answer(
        self, caller: Caller, agent: Actor, reply: Reply, state: str
    ) -> None:
        """P31: an outcome counts; what would be tried again ends as canceled."""
        gate = asyncio.Event()

        async def script(_call: Call, _writer: object) -> Reply:
            await gate.wait()
            return reply

        agent.script = script
        operation = await caller.begin(await caller.register(agent.url))
        await agent.until(1)
        await caller.cancel(operation)
        gate.set()
        await caller.until(operation, state=state)
        assert (len(agent.starts), agent.cancels) == (1, [])

    async def test_a_failing_cancel_is_repeated_then_dead(self, caller: Caller, agent: Actor) -> None:
        """P32: 5xx are repeated, 404 ends it; visible among the deliveries, and the operation goes on."""
        agent.replies(started(), Reply(500), Reply(404))
        operation = await caller.begin(await caller.register(agent.url))
        call = await agent.until(1)
        await caller.until(operation, state="started")
        await caller.cancel(operation)
        await agent.until(2, cancels=True)
        dead = await caller.until_delivery(operation, "dead", "cancel")
        assert (dead["tries"], dead["id"]) == (2, f"{operation}.1.cancel")
        assert "404" in dead["why"]
        assert (await caller.types(operation))[-1] == "cancel_failed"
        assert (await call.complete()).status == 200


class TestLegacyReads:
    async def test_result(self, caller: Caller, agent: Actor) -> None:
        """P33: 412 at once, 408 after the wait, 200 with the result, the token by header or query."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        call = await agent.until(1)
        running = await caller.get(f"{ROUTE}/result?token={operation}")
        assert (running.status, running.json["metadata"]["type"]) == (412, "nexus.HandlerError")
        asked_at_s = monotonic_s()
        check_failure(
            await caller.get(f"{ROUTE}/result?wait=300ms", {"nexus-operation-token": operation}), 408, "REQUEST_TIMEOUT"
        )
        assert 0.28 < monotonic_s() - asked_at_s < 10
        waiting = asyncio.create_task(caller.get(f"{ROUTE}/result?token={operation}&wait=20s"))
        await caller.until_gauge("mesh_waits_open", 1)
        await call.complete(body=b'"x"')
        assert ((await waiting).status, (await waiting).body) == (200, b'"x"')
        assert (await caller.get(f"{ROUTE}/result?token={operation}")).body == b'"x"'

    async def test_result_of_a_failure(self, caller: Caller, agent: Actor) -> None:
        """P33."""
        agent.replies(operation_error("failed", "boom"))
        operation = (await caller.nexus(await caller.register(agent.url)))["mesh-operation-id"]
        answer = await caller.get(f"{ROUTE}/result?token={operation}")
        assert (answer.status, answer["nexus-operation-state"], answer.json["message"]) == (424, "failed", "boom")

    async def test_info(self, caller: Caller, agent: Actor) -> None:
        """P34: Nexus words."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        assert (await caller.get(f"{ROUTE}?token={operation}")).json["state"] == "running"
        await (await agent.until(1)).complete()
        answer = await caller.get(ROUTE, {"nexus-operation-token": operation})
        assert (answer.status, answer.json["token"], answer.json["state"]) == (200, operation, "succeeded")

    async def test_unknown(self, caller: Caller) -> None:
        """P33, P34."""
        check_failure(await caller.get(f"{ROUTE}/result?token={operation_id()}"), 404, "NOT_FOUND")
        check_failure(await caller.get(f"{ROUTE}?token=x"), 404, "NOT_FOUND")
        check_failure(await caller.get(f"{ROUTE}/result?token={operation_id()}&wait=1h"), 400, "BAD_REQUEST")
