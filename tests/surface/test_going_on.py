"""P461: who asked is answered before what its request brings about is tried; its connection takes the next request."""

from __future__ import annotations

import asyncio

import pytest

from tests.surface.actors import Actor, started
from tests.surface.gateways import ASYNC, Caller
from tests.surface.wire import Connection

WITHIN_S = 30.0


class TestCompletion:
    async def test_a_receiver_that_hangs_holds_up_no_agent(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        agent.replies(started())
        name = await caller.register(agent.url)
        ids = [await caller.begin(name, callback=receiver.url) for _ in range(2)]
        starts = {call.operation: call for call in (await agent.until(1), await agent.until(2))}
        gate = receiver.holds()
        async with asyncio.timeout(WITHIN_S), await Connection.open(caller.gateway.port) as connection:
            for one in ids:  # one after the other: the second is read while the callback of the first is out
                token = ("token", starts[one].completion_token)
                connection.send("POST", "/nexus/callback", [token, ("nexus-operation-state", "succeeded")], b"")
                assert (await connection.answer()).status == 200
                await receiver.until(ids.index(one) + 1)
        assert [(await caller.record(one))["state"] for one in ids] == ["succeeded"] * 2
        assert {(await caller.deliveries(one))[0]["state"] for one in ids} == {"in_flight"}
        gate.set()
        for one in ids:
            assert (await caller.until_delivery(one, "delivered"))["tries"] == 1

    async def test_a_callback_that_cannot_be_sent_spoils_nothing(self, caller: Caller, agent: Actor) -> None:
        """The agent has its 200; the next try is the delivery's affair (P85)."""
        agent.replies(started())
        async with asyncio.timeout(WITHIN_S):
            gone = await Actor().start()
            one = await caller.begin(await caller.register(agent.url), callback=gone.url)
            await gone.stop()
            assert (await (await agent.until(1)).complete()).status == 200
            await caller.until_delivery(one, "pending")

    async def test_a_long_result_is_told_all_the_same(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        agent.replies(started())
        await caller.begin(await caller.register(agent.url), callback=receiver.url)
        body = b'"' + b"x" * 100_000 + b'"'
        assert (await (await agent.until(1)).complete(body=body)).status == 200
        assert (await receiver.until(1)).body == body


class TestStart:
    @pytest.mark.parametrize("surface", ["nexus", "v1"])
    async def test_an_agent_that_hangs_holds_up_no_caller_that_does_not_wait(
        self, caller: Caller, agent: Actor, surface: str
    ) -> None:
        gate = agent.holds()
        name = await caller.register(agent.url)
        target, body = "/v1/operations", b'{"endpoint":"%b","service":"svc","operation":"op"}' % name.encode()
        if surface == "nexus":
            target, body = f"/nexus/endpoints/{name}/services/svc/op", b"null"
        ids: list[str] = []
        async with asyncio.timeout(WITHIN_S), await Connection.open(caller.gateway.port) as connection:
            for number in (1, 2):
                connection.send("POST", target, [ASYNC, ("content-type", "application/json")], body)
                answer = await connection.answer()
                assert answer.status in (201, 202)
                ids.append(answer["mesh-operation-id"])
                await agent.until(number)
        assert [call.operation for call in agent.starts] == ids
        gate.set()
        for one in ids:
            assert (await caller.result(one)).json == "held"

    async def test_an_instance_that_cannot_be_reached_leaves_it_in_line(self, caller: Caller) -> None:
        async with asyncio.timeout(WITHIN_S):
            gone = await Actor().start()
            name = await caller.register(gone.url)
            await gone.stop()
            one = await caller.begin(name)
            assert (await caller.until(one, blocked="unreachable"))["attempt"] == 0
