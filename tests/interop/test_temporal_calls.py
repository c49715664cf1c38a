"""Temporal as the caller: workflows whose Nexus endpoint is an operation behind our gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.clock import monotonic_s
from mesh.wire import HANDLER_ERRORS, retryable_by_default
from tests.interop.ground import Temporal
from tests.surface.actors import Actor, Reply, as_json, handler_error, operation_error, started
from tests.surface.gateways import ALPHA, BETA, TEAMS, Caller, Gateway, fresh

NO_REST = {"retry": {"initial_ms": 10, "max_ms": 10, "max_attempts": 3}}
"""A policy whose back-off no test has to wait for."""

Out = Callable[..., Awaitable[str]]


@pytest.fixture
def out(temporal: Temporal, caller: Caller, agent: Actor) -> Out:
    """A Nexus endpoint of Temporal that leads to `agent` (or `url`) through the gateway; its name."""

    async def register(url: str | None = None, **spec: Any) -> str:
        name = await caller.register(url or agent.url, policy=NO_REST, **spec)
        return temporal.endpoint_to(caller.gateway.url(f"/nexus/endpoints/{name}/services"))

    return register


async def ended(temporal: Temporal, endpoint: str, **call: Any) -> tuple[Any, list[str]]:
    """How a workflow's call ended, and the Nexus part of its history."""
    workflow = await temporal.call(endpoint, **call)
    return await temporal.result(workflow), await temporal.events(workflow)


def causes(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and message of what came below Temporal's own NexusOperationError."""
    first, *rest = answer["error"]
    assert first["is"] == "NexusOperationError"
    return [(one["is"], one["message"]) for one in rest]


class TestResults:
    async def test_in_one_round_trip(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P10, P18, P40, P42: no `started` in between; the agent sees the workflow's headers, link and deadline."""
        agent.replies(as_json({"sum": 3, "an": "Ünïcödé"}))
        answer, events = await ended(
            temporal, await out(), input={"a": 1}, headers={"X-Mine": "yes"}, schedule_to_close=20
        )
        assert answer == {"result": {"sum": 3, "an": "Ünïcödé"}, "token": None}
        assert events == ["SCHEDULED", "COMPLETED"]
        (call,) = agent.calls
        assert (call.path, call.json, call["x-mine"]) == ("/svc/op", {"a": 1}, "yes")
        assert call["nexus-link"].startswith("<temporal:///namespaces/default/workflows/wf-")
        assert call["nexus-link"].endswith('type="temporal.api.common.v1.Link.WorkflowEvent"')
        assert 15_000 < int(call["operation-timeout"].removesuffix("ms")) <= 20_000

    async def test_null_both_ways(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P17: Temporal sends no body and no type, and takes the same for null."""
        agent.replies(Reply(200))
        answer, _ = await ended(temporal, await out(), input=None)
        assert (answer["result"], agent.calls[0].body, agent.calls[0].get("content-type")) == (None, b"", None)

    async def test_bytes_both_ways(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P17, P41."""
        agent.replies(Reply(200, b"\x00abc", {"content-type": "application/octet-stream"}))
        answer, _ = await ended(temporal, await out(), bytes="\x00def")
        assert (answer["result"], agent.calls[0].body) == ("\x00abc", b"\x00def")
        assert agent.calls[0]["content-type"] == "application/octet-stream"

    async def test_names_of_any_characters(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P1: percent-encoded on the way, decoded once."""
        answer, _ = await ended(temporal, await out(), service="a/b", operation="ü %25")
        assert (answer, agent.calls[0].path) == ({"result": None, "token": None}, "/a%2Fb/%C3%BC%20%2525")

    async def test_by_callback(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P11, P80, P81: 201, then the completion; the token is the operation's id, the header with quotes survives."""
        agent.replies(started())
        workflow = await temporal.call(await out(), input=1, headers={"Prefer": "respond-async"})
        call = await agent.until(1)
        await caller.until(call.operation, state="started")
        assert (await call.complete(body=b'{"late": true}')).status == 200
        assert await temporal.result(workflow) == {"result": {"late": True}, "token": call.operation}
        assert await temporal.events(workflow) == ["SCHEDULED", "STARTED", "COMPLETED"]
        assert (await caller.until_delivery(call.operation, "delivered"))["tries"] == 1

    async def test_without_a_preference(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P14: `Request-Timeout: 10s` is a bound; the connection is free with the agent's 201, or after 2 s."""
        endpoint = await out()
        gate = agent.holds()
        for low_s, high_s in ((1.8, 6), (0, 1.8)):
            asked_at_s = monotonic_s()
            workflow = await temporal.call(endpoint)
            (pending,) = await temporal.until("pending", lambda rows: rows and rows[0]["token"], workflow_id=workflow)
            assert low_s < monotonic_s() - asked_at_s < high_s
            assert pending["token"] == agent.calls[-1].operation
            if low_s:
                gate.set()
                assert (await temporal.result(workflow))["result"] == "held"
                agent.replies(started())
        await caller.until(agent.calls[-1].operation, state="started")
        assert (await agent.calls[-1].complete()).status == 200
        assert (await temporal.result(workflow))["result"] == "late"

    async def test_a_result_too_large_for_temporal(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P98: it fails at once; handed on, Temporal would try again until the operation's timeout."""
        agent.replies(as_json("x" * (2 << 20)))
        answer, events = await ended(temporal, await out())
        assert events == ["SCHEDULED", "FAILED"]
        assert "larger than this gateway takes" in answer["error"][1]["message"]


class TestFailures:
    @pytest.mark.parametrize("late", [False, True])
    async def test_of_operations(
        self, temporal: Temporal, caller: Caller, agent: Actor, out: Out, *, late: bool
    ) -> None:
        """P12, P81: in the answer and by callback alike."""
        endpoint = await out()
        for state, event, kind in (
            ("failed", "FAILED", "ApplicationError"),
            ("canceled", "CANCELED", "CancelledError"),
        ):
            reply = operation_error(state, "no more paper")
            agent.replies(started() if late else reply)
            count = len(agent.starts) + 1
            workflow = await temporal.call(endpoint, headers={"prefer": "respond-async"} if late else {})
            if late:
                call = await agent.until(count)
                await caller.until(call.operation, state="started")
                assert (await call.complete(state, reply.body)).status == 200
            answer = await temporal.result(workflow)
            (first, *_) = causes(answer)
            assert first[0] == kind
            assert "no more paper" in first[1]
            assert (await temporal.events(workflow))[-1] == event

    async def test_of_handlers_that_are_final(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P13: type and message arrive, nobody tries again."""
        endpoint = await out()
        final = [kind for kind in HANDLER_ERRORS if not retryable_by_default(kind)]
        assert len(final) == 6
        for kind in final:
            agent.calls.clear()
            agent.replies(handler_error(HANDLER_ERRORS[kind][0], kind, f"no, {kind}"))
            answer, events = await ended(temporal, endpoint)
            assert (answer["error"][1]["type"], answer["error"][1]["retryable"]) == (kind, False)
            assert causes(answer)[0] == ("HandlerError", f"no, {kind}")
            assert (events, len(agent.calls)) == (["SCHEDULED", "FAILED"], 1)

    async def test_of_handlers_that_pass(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P90: the mesh tries again, by the endpoint's policy; Temporal's one start sees the result."""
        endpoint = await out()
        passing = [kind for kind in HANDLER_ERRORS if retryable_by_default(kind)]
        assert len(passing) == 5
        for kind in passing:
            agent.calls.clear()
            agent.replies(handler_error(HANDLER_ERRORS[kind][0], kind), as_json(kind))
            answer, events = await ended(temporal, endpoint)
            assert (answer["result"], events) == (kind, ["SCHEDULED", "COMPLETED"])
            assert [call.attempt for call in agent.calls] == [1, 2]

    async def test_that_do_not_pass(self, temporal: Temporal, agent: Actor, out: Out) -> None:
        """P92: the last failure is the cause."""
        agent.replies(handler_error(503, "UNAVAILABLE", "still closed"))
        answer, events = await ended(temporal, await out())
        assert (events, len(agent.calls)) == (["SCHEDULED", "FAILED"], 3)
        assert "no attempt was left" in causes(answer)[0][1]
        assert "still closed" in str(answer)

    @pytest.mark.parametrize(("kind", "override"), [("INTERNAL", False), ("BAD_REQUEST", True)])
    async def test_whose_type_is_overridden(
        self, temporal: Temporal, agent: Actor, out: Out, kind: str, *, override: bool
    ) -> None:
        """P43: `retryableOverride`."""
        agent.replies(handler_error(HANDLER_ERRORS[kind][0], kind, retryableOverride=override), as_json("better"))
        answer, _ = await ended(temporal, await out())
        if override:
            assert (answer["result"], len(agent.calls)) == ("better", 2)
        else:
            assert (answer["error"][1]["type"], answer["error"][1]["retryable"]) == (kind, False)
            assert len(agent.calls) == 1

    async def test_of_the_gateway_itself(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P4, P20, P22: at once, and in words that say what to mend."""
        nowhere = temporal.endpoint_to(caller.gateway.url("/nexus/endpoints/nobody-here/services"))
        schema = {"type": "object", "required": ["a"]}
        services = [{"name": "svc", "operations": [{"name": "op", "input": schema}]}]
        for endpoint, kind, words in (
            (nowhere, "NOT_FOUND", "nobody-here"),
            (await out(services=services), "BAD_REQUEST", "a"),
        ):
            answer, events = await ended(temporal, endpoint, input={})
            assert (answer["error"][1]["type"], events) == (kind, ["SCHEDULED", "FAILED"])
            assert words in answer["error"][1]["message"]
        assert agent.calls == []

    async def test_time_over(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P21, P100: the workflow's timeout is the operation's; both end, and the agent is told to stop."""
        agent.replies(started())
        workflow = await temporal.call(await out(), headers={"prefer": "respond-async"}, schedule_to_close=3)
        call = await agent.until(1)
        agent.replies(Reply(202))
        answer = await temporal.result(workflow)
        # Two clocks run, Temporal's first; on a busy machine the mesh's word may be there before its timer.
        assert "TimeoutError" in [one["is"] for one in answer["error"]] or "operation timed out" in str(answer), answer
        assert (await caller.until(call.operation, state="timed_out"))["deadline"] is not None
        assert (await agent.until(1, cancels=True))["nexus-operation-token"] == "agent-token"


class TestRetries:
    async def test_while_the_gateway_is_away(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P15: Temporal comes again with the same request id; the agent hears of it once."""
        endpoint = await out()
        caller.gateway.kill()
        agent.replies(as_json("after all"))
        workflow = await temporal.call(endpoint)
        (pending,) = await temporal.until("pending", lambda rows: rows and rows[0]["attempt"], workflow_id=workflow)
        assert pending["token"] == ""
        caller.gateway.start()
        assert (await temporal.result(workflow))["result"] == "after all"
        assert len(agent.calls) == 1

    async def test_after_an_answer_that_was_lost(
        self, temporal: Temporal, caller: Caller, agent: Actor, out: Out
    ) -> None:
        """P7, P15, P114: killed with the start in its hands. One operation, whose outcome the workflow gets."""
        gate = agent.holds()
        workflow = await temporal.call(await out(), input="once")
        operation = (await agent.until(1)).operation
        caller.gateway.kill()
        caller.gateway.start()
        again = await agent.until(2)
        assert (again.operation, again["nexus-request-id"]) == (operation, agent.calls[0]["nexus-request-id"])
        gate.set()
        assert (await temporal.result(workflow))["result"] == "held"
        rows = (await caller.get(f"/v1/operations?endpoint={(await caller.record(operation))['endpoint']}")).json
        assert [one["id"] for one in rows["items"]] == [operation]

    async def test_a_completion_while_temporal_wants_nothing_of_it(
        self, temporal: Temporal, caller: Caller, agent: Actor, out: Out
    ) -> None:
        """P85: the workflow is gone; its answer ends the delivery, never the operation."""
        agent.replies(started())
        workflow = await temporal.call(await out(), headers={"prefer": "respond-async"})
        call = await agent.until(1)
        await caller.until(call.operation, state="started")
        await temporal.ask("terminate", workflow_id=workflow)
        assert (await call.complete()).status == 200
        await caller.until_delivery(call.operation, "dead")
        assert (await caller.record(call.operation))["state"] == "succeeded"


class TestCancel:
    async def begun(self, temporal: Temporal, caller: Caller, agent: Actor, endpoint: str, **call: Any) -> str:
        """A workflow whose operation is started at both ends; its id."""
        agent.replies(started())
        workflow = await temporal.call(endpoint, headers={"prefer": "respond-async"}, **call)
        await caller.until((await agent.until(1)).operation, state="started")
        await temporal.until("pending", lambda rows: rows and rows[0]["token"], workflow_id=workflow)
        agent.replies(Reply(202))
        return workflow

    async def test_reaches_the_agent_and_its_end_the_workflow(
        self, temporal: Temporal, caller: Caller, agent: Actor, out: Out
    ) -> None:
        """P30, P32: the agent's own token; the workflow waits for the end, as Temporal's default is."""
        workflow = await self.begun(temporal, caller, agent, await out())
        await temporal.ask("signal", workflow_id=workflow, name="cancel")
        cancel = await agent.until(1, cancels=True)
        assert (cancel.path, cancel["nexus-operation-token"]) == ("/svc/op/cancel", "agent-token")
        await temporal.until("history", lambda rows: "CANCEL_REQUEST_COMPLETED" in str(rows), workflow_id=workflow)
        assert (await agent.starts[0].complete("canceled", operation_error("canceled", "stopped").body)).status == 200
        assert causes(await temporal.result(workflow))[0][0] == "CancelledError"
        assert (await temporal.events(workflow))[-1] == "CANCELED"

    async def test_is_a_wish(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P31: the agent may still succeed."""
        workflow = await self.begun(temporal, caller, agent, await out())
        await temporal.ask("signal", workflow_id=workflow, name="cancel")
        await agent.until(1, cancels=True)
        assert (await agent.starts[0].complete(body=b'"too late to stop"')).status == 200
        assert (await temporal.result(workflow))["result"] == "too late to stop"

    async def test_of_the_whole_workflow(self, temporal: Temporal, caller: Caller, agent: Actor, out: Out) -> None:
        """P30: what Temporal does with its operations when a workflow is canceled."""
        workflow = await self.begun(temporal, caller, agent, await out(), cancellation="WAIT_REQUESTED")
        await temporal.ask("cancel", workflow_id=workflow)
        await agent.until(1, cancels=True)
        assert "Cancel" in str(await temporal.result(workflow))

    async def test_of_what_was_never_dispatched(
        self, temporal: Temporal, caller: Caller, agent: Actor, out: Out
    ) -> None:
        """P31: canceled in the same moment; the agent never hears of it."""
        name = await caller.register(agent.url)
        await caller.post(f"/v1/endpoints/{name}/pause")
        endpoint = temporal.endpoint_to(caller.gateway.url(f"/nexus/endpoints/{name}/services"))
        workflow = await temporal.call(endpoint, headers={"prefer": "respond-async"})
        await temporal.until("pending", lambda rows: rows and rows[0]["token"], workflow_id=workflow)
        await temporal.ask("signal", workflow_id=workflow, name="cancel")
        assert causes(await temporal.result(workflow))[0][0] == "CancelledError"
        assert agent.calls == []


class TestKeys:
    async def test_a_workflow_shows_its_key(
        self, temporal: Temporal, agent: Actor, own_gateway: Callable[..., Gateway]
    ) -> None:
        """P5: in the headers of the call; without one it fails at once, for Temporal has no credentials of its own."""
        teams = own_gateway(TEAMS)
        alpha = Caller(teams, ALPHA)
        name = await alpha.register(agent.url, allow=["alpha"])
        endpoint = temporal.endpoint_to(teams.url(f"/nexus/endpoints/{name}/services"))
        calls = (
            temporal.call(endpoint, headers={"Authorization": f"Bearer {ALPHA}"}),
            temporal.call(endpoint, headers={"Authorization": f"Bearer {BETA}"}),
            temporal.call(endpoint),
        )
        answers = [await temporal.result(workflow) for workflow in await asyncio.gather(*calls)]
        assert answers[0]["result"] is None
        assert [answer["error"][1]["type"] for answer in answers[1:]] == ["NOT_FOUND", "UNAUTHENTICATED"]
        assert agent.calls[0]["mesh-namespace"] == "alpha"
        assert agent.calls[0].get("authorization") is None


async def test_without_a_workflow(temporal: Temporal, agent: Actor, out: Out) -> None:
    """P10: a standalone operation of Temporal's command line is a caller like any other."""
    agent.replies(as_json({"ok": True}))
    code, said = await asyncio.to_thread(
        temporal.cli,
        *("nexus", "operation", "execute", "--endpoint", await out(), "--service", "svc", "--operation", "op"),
        *("--operation-id", fresh("alone"), "--input", '{"a": 1}'),
    )
    assert (code, "COMPLETED" in said, agent.calls[0].json) == (0, True, {"a": 1}), said
