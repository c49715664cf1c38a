"""Temporal as the handler: operations of its workers behind our gateway, called by our client and by plain HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import nexusrpc
import pytest

import mesh
from mesh.errors import Refusal
from mesh.wire import HANDLER_ERRORS, retryable_by_default
from tests.interop.ground import Temporal
from tests.surface.actors import Actor
from tests.surface.gateways import ASYNC, Caller, fresh

NO_REST = {"retry": {"initial_ms": 10, "max_ms": 10, "max_attempts": 3}}


@nexusrpc.service
class Desk:
    """The contract of worker.py's handlers, as a team that knows nothing of Temporal would have it."""

    echo: nexusrpc.Operation[Any, Any]
    raise_: nexusrpc.Operation[dict[str, Any], None] = nexusrpc.Operation(name="raise")
    seen: nexusrpc.Operation[None, dict[str, Any]]
    typed: nexusrpc.Operation[int, int]
    blob: nexusrpc.Operation[bytes, bytes]
    nothing: nexusrpc.Operation[None, None]
    job: nexusrpc.Operation[dict[str, Any], Any]


@pytest.fixture(scope="session")
def base(temporal: Temporal) -> str:
    """Where Temporal's workers are reached by HTTP."""
    return temporal.endpoint_in()


@pytest.fixture
async def desk(caller: Caller, base: str) -> str:
    """The endpoint of the mesh behind which they are."""
    return await caller.register(base, policy=NO_REST)


@pytest.fixture
async def client(caller: Caller) -> AsyncIterator[mesh.Client]:
    async with mesh.Client(caller.gateway.url()) as client:
        yield client


class TestResults:
    async def test_of_a_sync_operation(self, client: mesh.Client, desk: str) -> None:
        """By contract, and by names alone."""
        value = {"a": [1, "ü", None, 2.5]}
        assert await client.call(desk, Desk, Desk.echo, value) == value
        assert await client.call(desk, "Desk", "typed", 41, output=int) == 42

    async def test_of_every_kind_of_content(self, client: mesh.Client, desk: str) -> None:
        """P17: null and bytes."""
        assert await client.call(desk, Desk, Desk.nothing) is None
        assert await client.call(desk, Desk, Desk.blob, b"\x00abc") == b"cba\x00"

    async def test_of_a_workflow(self, client: mesh.Client, caller: Caller, desk: str) -> None:
        """P43, P50: 201 with Temporal's token, then its completion; one attempt."""
        handle = await client.start(desk, Desk, Desk.job, {"value": {"done": True}})
        assert await handle.result(timeout_s=20) == {"done": True}
        types = await caller.types(handle.id)
        assert [one for one in types if one in ("accepted", "dispatched", "succeeded")] == [
            "accepted", "dispatched", "succeeded",
        ]  # fmt: skip

    async def test_told_by_callback(self, temporal: Temporal, caller: Caller, receiver: Actor, desk: str) -> None:
        """P18, P81: what curl would send; Temporal's link to its workflow comes along."""
        job = fresh("job")
        answer = await caller.nexus(
            desk,
            json.dumps({"id": job, "wait": True, "value": 7}).encode(),
            [ASYNC, ("Nexus-Callback-My-Token", 'with "quotes"')],
            service="Desk",
            operation="job",
            callback=f"{receiver.url}/done?a=b",
        )
        assert answer.status == 201
        await caller.until(answer.json["token"], state="started")
        assert await temporal.ask("status", workflow_id=job) == "RUNNING"
        await temporal.ask("signal", workflow_id=job, name="go")
        told = await receiver.until(1)
        assert (told.target, told.json, told["my-token"]) == ("/done?a=b", 7, 'with "quotes"')
        assert (told["nexus-operation-state"], told["nexus-operation-token"]) == ("succeeded", answer.json["token"])
        assert any(f"temporal:///namespaces/default/workflows/{job}/" in link for link in told.all("nexus-link"))

    async def test_handlers_see_who_asks(self, client: mesh.Client, desk: str) -> None:
        """P40, P42: what the mesh says in headers, the caller's own ones, and one request id for all attempts."""
        handle = await client.start(desk, Desk, Desk.seen, headers={"X-Mine": "yes"}, wait_s=10)
        seen = await handle.result()
        headers = seen["headers"]
        assert (headers["x-mine"], headers["mesh-namespace"], headers["mesh-attempt"]) == ("yes", "default", "1")
        assert (headers["mesh-operation-id"], seen["request_id"]) == (handle.id, f"{handle.id}.1")


class TestFailures:
    @pytest.mark.parametrize("kind", [kind for kind in HANDLER_ERRORS if not retryable_by_default(kind)])
    async def test_of_handlers_that_are_final(self, client: mesh.Client, caller: Caller, desk: str, kind: str) -> None:
        """P13: status, type and message of the handler, within the wait; kept as the cause."""
        how = {"type": kind, "message": f"no, {kind}"}
        answer = await caller.nexus(desk, json.dumps(how).encode(), service="Desk", operation="raise")
        assert (answer.status, answer.json["message"]) == (HANDLER_ERRORS[kind][0], how["message"])
        assert answer.get("mesh-failure-source") is None
        with pytest.raises(mesh.OperationFailed) as raised:
            await client.call(desk, Desk, Desk.raise_, how)
        cause = raised.value.failure["cause"]
        assert (cause["message"], cause["details"]["type"]) == (how["message"], kind)

    @pytest.mark.parametrize("kind", [kind for kind in HANDLER_ERRORS if retryable_by_default(kind)])
    async def test_of_handlers_that_pass(self, client: mesh.Client, caller: Caller, desk: str, kind: str) -> None:
        """P90."""
        handle = await client.start(desk, Desk, Desk.raise_, {"type": kind, "times": 1}, wait_s=10)
        assert await handle.result(timeout_s=20) is None
        assert (await caller.record(handle.id))["attempt"] == 2

    async def test_of_handlers_that_do_not_pass(self, client: mesh.Client, desk: str) -> None:
        """P92."""
        with pytest.raises(mesh.OperationFailed) as raised:
            await client.call(desk, Desk, Desk.raise_, {"type": "UNAVAILABLE", "message": "still closed"})
        assert raised.value.failure["metadata"]["reason"] == "attempts_exhausted"
        assert "still closed" in json.dumps(raised.value.failure)

    @pytest.mark.parametrize(("kind", "override"), [("INTERNAL", False), ("BAD_REQUEST", True)])
    async def test_whose_type_is_overridden(
        self, client: mesh.Client, caller: Caller, desk: str, kind: str, *, override: bool
    ) -> None:
        """P43: Temporal says it in the older header."""
        how = {"type": kind, "retryable": override, "times": 1}
        handle = await client.start(desk, Desk, Desk.raise_, how, wait_s=10)
        wanted = ("succeeded", 2) if override else ("failed", 1)
        assert (handle.record["state"], handle.record["attempt"]) == wanted

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    async def test_of_operations(self, caller: Caller, desk: str, state: str) -> None:
        """P12."""
        how = {"state": state, "message": "no more paper"}
        answer = await caller.nexus(desk, json.dumps(how).encode(), service="Desk", operation="raise")
        assert (answer.status, answer["nexus-operation-state"], answer.json["details"]["state"]) == (424, state, state)
        assert "no more paper" in answer.body.decode()

    async def test_of_a_workflow(self, client: mesh.Client, temporal: Temporal, desk: str) -> None:
        """P50: Temporal's completion has the plain cause; type and details of the application survive."""
        with pytest.raises(mesh.OperationFailed) as raised:
            await client.call(desk, Desk, Desk.job, {"fail": "out of ink"})
        text = json.dumps(raised.value.failure)
        assert raised.value.failure["message"] == "out of ink"
        assert "AsTold" in text
        job = fresh("job")
        handle = await client.start(desk, Desk, Desk.job, {"id": job, "wait": True})
        await temporal.until("jobs", bool, prefix=job)
        await temporal.ask("terminate", workflow_id=job)
        with pytest.raises(mesh.OperationFailed):
            await handle.result(timeout_s=20)

    @pytest.mark.parametrize(
        ("service", "operation", "status"),
        [("Desk", "nothing-of-that-name", 404), ("None", "echo", 404), ("Desk", "typed", 400)],
    )
    async def test_of_a_caller(self, caller: Caller, desk: str, service: str, operation: str, status: int) -> None:
        """P13: unknown names and input of another type are final; nobody tries them again."""
        answer = await caller.nexus(desk, b'"x"', service=service, operation=operation)
        assert answer.status == status
        assert (await caller.record(answer["mesh-operation-id"]))["attempt"] == 1

    async def test_when_no_worker_is_there(self, temporal: Temporal, client: mesh.Client, caller: Caller) -> None:
        """P99: nobody polls the queue, which only time tells; every such attempt is one worth repeating."""
        policy = {"request_timeout_ms": 1200, "retry": {"initial_ms": 10, "max_attempts": 1}}
        name = await caller.register(temporal.endpoint_in("nobody-polls"), policy=policy)
        with pytest.raises(mesh.OperationFailed) as raised:
            await client.call(name, Desk, Desk.echo, 1)
        failure = raised.value.failure
        assert failure["metadata"]["reason"] == "attempts_exhausted"
        assert failure["cause"]["details"]["type"] == "UPSTREAM_TIMEOUT"

    async def test_of_a_wrong_address(self, temporal: Temporal, caller: Caller, base: str) -> None:
        """P13, P92: what the how-to says of a name in the place of the id, and of a target that is a URL again."""
        *before, endpoint_id, after = base.rsplit("/", 2)
        assert len(endpoint_id) == 36
        named = await caller.register("/".join([*before, "in-by-name", after]), policy=NO_REST)
        answer = await caller.nexus(named, service="Desk", operation="echo")
        assert (answer.status, answer.json["cause"]["message"]) == (424, "internal error")
        code, said = temporal.cli(
            "operator", "nexus", "endpoint", "get", "--name", temporal.endpoint_to("http://127.0.0.1:1/x"), "-o", "json"
        )
        assert code == 0
        proxied = await caller.register("/".join([*before, json.loads(said)["id"], after]), policy=NO_REST)
        answer = await caller.nexus(proxied, service="Desk", operation="echo")
        assert (answer.status, answer.json["message"]) == (400, "invalid endpoint target")


class TestCancel:
    async def test_ends_the_workflow(
        self, client: mesh.Client, temporal: Temporal, caller: Caller, receiver: Actor, desk: str
    ) -> None:
        """P31, P32, P81: the workflow is canceled, and says so by its completion; the caller's callback tells it on."""
        job = fresh("job")
        handle = await client.start(desk, Desk, Desk.job, {"id": job, "wait": True}, callback=receiver.url)
        await caller.until(handle.id, state="started")
        await handle.cancel()
        with pytest.raises(mesh.OperationCanceled):
            await handle.result(timeout_s=20)
        assert await temporal.ask("status", workflow_id=job) == "CANCELED"
        assert (await receiver.until(1))["nexus-operation-state"] == "canceled"

    async def test_before_the_operation_started(self, client: mesh.Client, temporal: Temporal, caller: Caller) -> None:
        """P31: asked while the start is out. Whatever comes first, nothing keeps running."""
        desk = await caller.register(temporal.endpoint_in(), policy=NO_REST)
        job = fresh("job")
        handle = await client.start(desk, Desk, Desk.job, {"id": job, "wait": True})
        await handle.cancel()
        with pytest.raises(mesh.OperationCanceled):
            await handle.result(timeout_s=20)
        for workflow in await temporal.ask("jobs", prefix=job):
            assert await temporal.ask("status", workflow_id=workflow) == "CANCELED"

    async def test_by_nexus_as_curl_would(self, temporal: Temporal, caller: Caller, desk: str) -> None:
        """P30."""
        job = fresh("job")
        body = json.dumps({"id": job, "wait": True}).encode()
        operation = await caller.begin(desk, body=body, service="Desk", operation="job")
        await caller.until(operation, state="started")
        path = f"/nexus/endpoints/{desk}/services/Desk/job/cancel"
        answers = [await caller.post(path, headers={"Nexus-Operation-Token": operation}) for _ in range(2)]
        assert [answer.status for answer in answers] == [202, 202]
        await caller.until(operation, state="canceled")
        assert await temporal.ask("status", workflow_id=job) == "CANCELED"


class TestGatewayGone:
    async def test_one_workflow_whose_completion_waits_for_the_gateway(
        self, temporal: Temporal, caller: Caller, base: str
    ) -> None:
        """P114: a workflow named by its request id runs once, and Temporal repeats its completion until it is taken."""
        desk = await caller.register(base, policy=NO_REST)
        operation = await caller.begin(desk, body=b'{"wait": true, "value": "kept"}', service="Desk", operation="job")
        caller.gateway.kill()
        caller.gateway.start()
        job = f"job-{operation}.1"
        await caller.until(operation, state="started")
        assert await temporal.until("jobs", bool, prefix=job) == [job]
        caller.gateway.kill()
        await temporal.ask("signal", workflow_id=job, name="go")
        assert await temporal.ask("result", workflow_id=job) == "kept"
        caller.gateway.start()
        assert (await caller.result(operation)).json == "kept"


async def test_temporal_on_both_ends(temporal: Temporal, caller: Caller, desk: str) -> None:
    """A workflow calls a workflow through the mesh: result, links both ways, cancel."""
    out = temporal.endpoint_to(caller.gateway.url(f"/nexus/endpoints/{desk}/services"))
    job = fresh("job")
    common: dict[str, Any] = {"service": "Desk", "operation": "job"}
    workflow = await temporal.call(out, input={"id": job, "wait": True, "value": "through"}, **common)
    await temporal.until("pending", lambda rows: rows and rows[0]["token"], workflow_id=workflow)
    await temporal.ask("signal", workflow_id=job, name="go")
    assert (await temporal.result(workflow))["result"] == "through"
    history = await temporal.ask("history", workflow_id=workflow)
    (begun,) = (event for event in history if event["type"] == "NEXUS_OPERATION_STARTED")
    assert job in str(begun["links"])
    seen = await temporal.result(await temporal.call(out, service="Desk", operation="seen"))
    assert [link[0] for link in seen["result"]["links"]] == ["temporal.api.common.v1.Link.WorkflowEvent"]
    job = fresh("job")
    workflow = await temporal.call(out, input={"id": job, "wait": True}, **common)
    await temporal.until("pending", lambda rows: rows and rows[0]["token"], workflow_id=workflow)
    await temporal.ask("signal", workflow_id=workflow, name="cancel")
    answer = await temporal.result(workflow)
    assert [one["is"] for one in answer["error"]][:2] == ["NexusOperationError", "CancelledError"]
    assert await temporal.ask("status", workflow_id=job) == "CANCELED"


async def test_refusals_are_known_before_anything_starts(client: mesh.Client, desk: str) -> None:
    """P16: the same key with other content; Temporal hears nothing of it."""
    key = fresh("key")
    assert await client.call(desk, Desk, Desk.echo, 1, idempotency_key=key) == 1
    assert await client.call(desk, Desk, Desk.echo, 1, idempotency_key=key) == 1
    with pytest.raises(Refusal):
        await client.call(desk, Desk, Desk.echo, 2, idempotency_key=key)
