"""Links and trace context: what a caller gives reaches the agent, what an agent gives the caller; both are kept."""

from __future__ import annotations

import asyncio

import pytest

from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, operation_error, started
from tests.surface.checks import check_failure, check_problem
from tests.surface.gateways import ASYNC, Caller
from tests.surface.wire import Message

MINE = '<https://a.example/ticket/7?x=1>; type="a.Ticket"'
JOB, RUN = '<https://b.example/job/1>; type="b.Job"', '<https://b.example/run/2>; type="b.Run"'
TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1,other=2",
    "baggage": "team=blue",
}


def shown(url: str, kind: str, by: str) -> dict[str, str]:
    return {"url": url, "type": kind, "by": by}


def linked(*values: str) -> list[tuple[str, str]]:
    return [("nexus-link", value) for value in values]


def foreign(message: Message) -> list[str]:
    """The links of an answer or a callback but the first, which is the gateway's own to the operation."""
    own, *others = message.all("nexus-link")
    assert own.endswith('type="mesh.Operation"')
    return others


def traced(call: Call) -> dict[str, str | None]:
    return {name: call.get(name) for name in TRACE}


class TestOfTheCaller:
    @pytest.mark.parametrize("surface", ["nexus", "v1"])
    async def test_reach_the_agent_on_every_attempt(self, caller: Caller, agent: Actor, surface: str) -> None:
        """P160: one header each, in order, commas encoded, for readers that split at every comma."""
        agent.replies(handler_error(503, "UNAVAILABLE"), as_json(1))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        headers = linked(f"{MINE}, <https://a.example/l?n=1,2>;type=a.List", "<temporal:///w>; type=T")
        start = caller.nexus(name, headers=headers) if surface == "nexus" else caller.v1(name, headers)
        assert (await start).status == 200
        for call in agent.calls:
            assert call.all("nexus-link") == [
                MINE, '<https://a.example/l?n=1%2C2>; type="a.List"', '<temporal:///w>; type="T"',
            ]  # fmt: skip
        assert [call.attempt for call in agent.calls] == [1, 2]
        record = await caller.record(agent.calls[0].operation)
        assert record["links"] == [
            shown("https://a.example/ticket/7?x=1", "a.Ticket", "caller"),
            shown("https://a.example/l?n=1%2C2", "a.List", "caller"),
            shown("temporal:///w", "T", "caller"),
        ]

    @pytest.mark.parametrize("value", ["nonsense", "<https://a.example>", "<https://a.example/%zz>; type=T"])
    async def test_that_nobody_can_read(self, caller: Caller, agent: Actor, value: str) -> None:
        """P160: 400, before anything is stored."""
        name = await caller.register(agent.url)
        check_failure(await caller.nexus(name, headers=linked(value)), 400, "BAD_REQUEST", "link_invalid")
        check_problem(await caller.v1(name, linked(value)), 400, "link_invalid")
        assert agent.calls == []
        assert (await caller.get(f"/v1/operations?endpoint={name}")).json["items"] == []

    async def test_are_no_content(self, caller: Caller, agent: Actor) -> None:
        """P15: a repeat with other links is the same operation; the first ones are kept."""
        name = await caller.register(agent.url)
        first = await caller.nexus(name, headers=[*linked(MINE), ("nexus-request-id", "k-links")])
        again = await caller.nexus(name, headers=[*linked(JOB), ("nexus-request-id", "k-links")])
        assert again["mesh-operation-id"] == first["mesh-operation-id"]
        assert [one["type"] for one in (await caller.record(first["mesh-operation-id"]))["links"]] == ["a.Ticket"]


class TestOfTheAgent:
    @pytest.mark.parametrize("state", ["succeeded", "failed"])
    async def test_on_its_answer(self, caller: Caller, agent: Actor, state: str) -> None:
        """P161: 200 and 424 alike, now and in later reads."""
        reply = as_json(1) if state == "succeeded" else operation_error("failed")
        reply.headers += linked(JOB, RUN)
        agent.replies(reply)
        answer = await caller.nexus(await caller.register(agent.url))
        operation = answer["mesh-operation-id"]
        assert (answer.status in (200, 424), foreign(answer)) == (True, [JOB, RUN])
        assert foreign(await caller.result(operation)) == [JOB, RUN]
        assert (await caller.record(operation))["links"] == [
            shown("https://b.example/job/1", "b.Job", "agent"), shown("https://b.example/run/2", "b.Run", "agent"),
        ]  # fmt: skip

    @pytest.mark.parametrize("state", ["succeeded", "failed"])
    async def test_on_its_201_and_its_completion(
        self, caller: Caller, agent: Actor, receiver: Actor, state: str
    ) -> None:
        """P161: together, each once, in the record while it runs, in the callback and in every read after."""
        agent.replies(started(headers=linked(JOB)))
        operation = await caller.begin(await caller.register(agent.url), linked(MINE), callback=receiver.url)
        record = await caller.until(operation, state="started")
        assert record["links"][1:] == [shown("https://b.example/job/1", "b.Job", "agent")]
        call = await agent.until(1)
        body = b"7" if state == "succeeded" else operation_error(state).body
        assert (await call.complete(state, body, linked(JOB, RUN))).status == 200
        assert foreign(await receiver.until(1)) == [JOB, RUN]
        assert foreign(await caller.result(operation)) == [JOB, RUN]
        assert [one["type"] for one in (await caller.record(operation))["links"]] == ["a.Ticket", "b.Job", "b.Run"]

    async def test_on_its_201_are_in_ours(self, caller: Caller, agent: Actor) -> None:
        """P161: for the request that waits meanwhile, for a repeat, and for the answer with the outcome."""
        agent.replies(started(headers=linked(JOB)))
        name, key = await caller.register(agent.url), ("nexus-request-id", "k-201-links")
        answer = await caller.nexus(name, headers=[("prefer", "wait=0.3"), key])
        assert (answer.status, foreign(answer)) == (201, [JOB])
        assert foreign(await caller.nexus(name, headers=[ASYNC, key])) == [JOB]
        waiting = asyncio.create_task(caller.nexus(name, headers=[("prefer", "wait=10")]))
        call = await agent.until(2)
        await caller.until(call.operation, state="started")
        assert (await call.complete(headers=linked(RUN))).status == 200
        outcome = await waiting
        assert (outcome.status, foreign(outcome)) == (200, [JOB, RUN])

    async def test_in_cloud_events(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P161: in the record that the event carries."""
        agent.replies(started(headers=linked(JOB)))
        callback = {"url": receiver.url, "format": "cloudevents"}
        answer = await caller.v1(await caller.register(agent.url), [ASYNC], callback=callback)
        await caller.until(answer.json["id"], state="started")
        assert (await (await agent.until(1)).complete()).status == 200
        assert (await receiver.until(1)).json["data"]["links"] == [shown("https://b.example/job/1", "b.Job", "agent")]

    @pytest.mark.parametrize(
        "bad",
        [
            "nonsense",
            "<https://b.example>",
            '<https://b.example/a b>; type="T"',
            '<https://b.example>; type="T',
            "<>;type=T",
            ",",
        ],
    )
    async def test_that_nobody_can_read(self, caller: Caller, agent: Actor, bad: str) -> None:
        """P162: left out; the result and the other links stay. Handed on, Temporal's callers would ask for ever."""
        name = await caller.register(agent.url)
        ok = [("content-type", "application/json")]
        agent.replies(Reply(200, b"1", [*ok, *linked(f"{bad}, {JOB}", bad, RUN)]))
        answer = await caller.nexus(name)
        assert (answer.status, answer.json, foreign(answer)[-1]) == (200, 1, RUN)
        assert all(one in (JOB, RUN) for one in foreign(answer))
        agent.replies(started(headers=linked(bad)))
        operation = await caller.begin(name)
        await caller.until(operation, state="started")
        assert "links" not in await caller.record(operation)

    async def test_that_are_too_many(self, caller: Caller, agent: Actor) -> None:
        """P162: 32 and 8 KiB of them travel on."""
        many = [f'<https://b.example/{number}>; type="b.Job"' for number in range(40)]
        agent.replies(Reply(200, b"1", linked(*many)))
        name = await caller.register(agent.url)
        assert foreign(await caller.nexus(name)) == many[:32]
        large = [f'<https://b.example/{"x" * 3000}{number}>; type="b.Job"' for number in range(3)]
        agent.replies(Reply(200, b"1", linked(*large)))
        assert foreign(await caller.nexus(name)) == large[:2]


class TestTrace:
    @pytest.mark.parametrize("surface", ["nexus", "v1"])
    async def test_goes_with_every_attempt_the_cancel_and_the_callback(
        self, caller: Caller, agent: Actor, receiver: Actor, surface: str
    ) -> None:
        """P163: and the record shows it."""
        agent.replies(handler_error(503, "UNAVAILABLE"), started())
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        if surface == "nexus":
            operation = await caller.begin(name, list(TRACE.items()), callback=receiver.url)
        else:
            body = {"callback": {"url": receiver.url}}
            operation = (await caller.v1(name, [ASYNC, *TRACE.items()], **body)).json["id"]
        await caller.until(operation, state="started")
        agent.replies(Reply(202))
        await caller.cancel(operation)
        await agent.until(1, cancels=True)
        assert (await agent.starts[1].complete("canceled", operation_error("canceled").body)).status == 200
        told = await receiver.until(1)
        assert [traced(call) for call in (*agent.calls, told)] == [TRACE] * 4
        assert (await caller.record(operation))["trace"] == TRACE

    async def test_there_is_none_where_nobody_gave_one(self, caller: Caller, agent: Actor) -> None:
        """P163: the mesh makes none up."""
        answer = await caller.nexus(await caller.register(agent.url))
        assert set(traced(agent.calls[0]).values()) == {None}
        record = await caller.record(answer["mesh-operation-id"])
        assert record.keys().isdisjoint(("trace", "links"))
