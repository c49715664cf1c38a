"""Contracts over the wire: inputs at the door, the gate for new versions, who relies on what, OpenAPI per endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from openapi_spec_validator import validate

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor
from tests.surface.checks import TIME, check_failure, check_problem
from tests.surface.gateways import Caller, fresh

OLD: dict[str, Any] = {
    "type": "object",
    "properties": {"amount": {"type": "integer"}, "note": {"type": ["string", "null"]}},
    "required": ["amount"],
}
NEW: dict[str, Any] = {
    "type": "object",
    "properties": {"amount": {"type": "integer"}, "note": {"type": "string"}, "vat": {"type": "string"}},
    "required": ["amount", "vat"],
}
DONE = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


def listed(**operations: Any) -> list[dict[str, Any]]:
    return [{"name": "invoice", "operations": [{"name": name, **spec} for name, spec in operations.items()]}]


async def register(caller: Caller, services: Any, **spec: Any) -> str:
    return await caller.register(None, services=services, **spec)


async def put(caller: Caller, name: str, services: Any, query: str = "", headers: Any = ()) -> Any:
    return await caller.ask("PUT", f"/v1/endpoints/{name}{query}", headers, {"services": services, "allow": ["*"]})


class TestInputs:
    async def test_breaches_are_listed_with_their_places_and_nothing_is_stored(self, caller: Caller) -> None:
        """P175."""
        name = await register(caller, listed(create={"input": NEW}))
        answer = await caller.v1(name, service="invoice", operation="create", input={"amount": "12", "note": 1})
        check_problem(answer, 422, "schema_breach")
        assert {one["pointer"]: one["detail"] for one in answer.json["errors"]} == {
            "/input": 'must have the property "vat"',
            "/input/amount": "must be integer",
            "/input/note": "must be string",
        }
        assert (await caller.get(f"/v1/operations?endpoint={name}")).json["items"] == []

    @pytest.mark.parametrize(
        "schema",
        [
            {"$ref": "#"},
            {"pattern": "^(?=a)b"},
            {"$ref": "http://127.0.0.1:1/schema"},
            {"description": "d" * 70_000},
        ],
    )
    async def test_a_schema_that_cannot_be_bounded_is_refused_with_its_place(self, caller: Caller, schema: Any) -> None:
        """P176."""
        answer = await put(caller, fresh("agent"), listed(create={"output": schema}))
        check_problem(answer, 422, "body_invalid", "/services/0/operations/0/output")

    async def test_a_hostile_input_holds_nobody_up(self, caller: Caller) -> None:
        """P176: while 2 MiB are checked against a pattern with many states, others are answered."""
        name = await register(caller, listed(create={"input": {"pattern": "[ab]*a[ab]{900}c"}}))
        large = b'"' + b"ab" * 1_000_000 + b'"'
        task = asyncio.create_task(caller.nexus(name, large, service="invoice", operation="create"))
        slowest = 0.0
        while not task.done():
            begin_s = monotonic_s()
            assert (await caller.get("/healthz")).status == 200
            slowest = max(slowest, monotonic_s() - begin_s)
            await sleep(0.01)
        check_failure(await task, 400, "BAD_REQUEST")
        assert slowest < 1.0


class TestGate:
    async def test_a_break_is_refused_with_its_place_and_those_who_call(
        self, alpha: Caller, beta: Caller, agent: Actor
    ) -> None:
        """P178, P179: the refusal names what breaks, where, and who was seen calling."""
        name = await alpha.register(agent.url, services=listed(create={"input": OLD}, list={}), allow=["*"])
        for caller, operation in ((beta, "create"), (alpha, "list")):
            await caller.v1(name, service="invoice", operation=operation, input={"amount": 1})
        answer = await put(alpha, name, listed(create={"input": NEW}))
        check_problem(answer, 409, "contract_breaks")
        found = {(one["operation"], one["pointer"]): one for one in answer.json["errors"]}
        at = "/services/0/operations/0/input"
        assert found.keys() == {
            ("create", at),
            ("create", f"{at}/properties/note"),
            ("list", "/services/0/operations"),
        }
        (seen,) = found["create", at]["callers"]
        assert (seen["namespace"], bool(TIME(seen["last_seen"]))) == ("beta", True)
        assert [one["namespace"] for one in found["list", "/services/0/operations"]["callers"]] == ["alpha"]
        detail = answer.json["detail"]
        assert 'invoice/create: input: the property "vat" is required now (called lately by beta)' in detail
        assert "force=true" in detail
        record = (await alpha.get(f"/v1/endpoints/{name}")).json
        assert (record["version"], len(record["services"][0]["operations"])) == (1, 2)

    async def test_a_forced_break_is_recorded(self, alpha: Caller, beta: Caller) -> None:
        """P180."""
        name = await register(alpha, listed(create={"input": OLD}), allow=["*"])
        answer = await put(alpha, name, listed(create={"input": NEW}), "?force=true")
        assert answer.status == 200, answer
        change = answer.json["contract_change"]
        assert (change["forced"], len(change["breaks"])) == (True, 2)
        contract = (await alpha.get(f"/v1/endpoints/{name}/contract")).json
        (kept,) = contract["changes"]
        assert (kept["version"], kept["by"], kept["forced"], kept["breaks"]) == (2, "alpha", True, change["breaks"])
        assert contract["services"][0]["operations"][0]["input"] == NEW
        others = (await beta.get(f"/v1/endpoints/{name}/contract")).json
        assert others.keys() == {"endpoint", "version", "services"}

    async def test_what_fits_is_taken_and_what_is_not_proven_is_taken_and_said(self, caller: Caller) -> None:
        """P178."""
        name = await register(caller, listed(create={"input": OLD}))
        wider = OLD | {"properties": OLD["properties"] | {"when": {"type": "string"}}}
        answer = await put(caller, name, listed(create={"input": wider}, send={}))
        assert answer.json["contract_change"] == {"breaks": [], "unproven": [], "forced": False}
        dated = OLD | {"properties": wider["properties"] | {"when": {"type": "string", "format": "date"}}}
        answer = await put(caller, name, listed(create={"input": dated}, send={}))
        (one,) = answer.json["contract_change"]["unproven"]
        assert (one["pointer"], one["code"]) == (
            "/services/0/operations/0/input/properties/when",
            "input_narrowed",
        )
        same = await put(caller, name, listed(create={"input": dated}, send={}))
        assert (same.status, "contract_change" in same.json) == (200, False)

    async def test_a_stale_if_match_goes_before_the_gate(self, caller: Caller) -> None:
        name = await register(caller, listed(create={"input": OLD}))
        answer = await put(caller, name, listed(), headers=[("if-match", '"v7"')])
        assert answer.status == 412, answer

    async def test_a_list_that_closes_breaks_what_was_called(self, caller: Caller, agent: Actor) -> None:
        """P179: an open list promised nothing, but whoever was seen calling is told."""
        name = await caller.register(agent.url)
        assert (await put(caller, name, listed(create={}))).status == 200
        other = await caller.register(agent.url)
        await caller.v1(other, service="invoice", operation="pay", input=1)
        answer = await put(caller, other, listed(create={}))
        check_problem(answer, 409, "contract_breaks", "/services/0/operations")
        assert answer.json["errors"][0]["callers"][0]["namespace"] == "default"

    async def test_callers_are_known_to_every_gateway_and_after_a_restart(
        self, own_gateway: Callable[..., Any], agent: Actor
    ) -> None:
        """P179: they are kept in the store, written within seconds."""
        gateway = own_gateway()
        caller = Caller(gateway)
        name = await caller.register(agent.url, services=listed(create={}))
        await caller.v1(name, service="invoice", operation="create", input=1)
        await sleep(6)
        gateway.start()
        contract = (await caller.get(f"/v1/endpoints/{name}/contract")).json
        assert [(one["operation"], one["namespace"]) for one in contract["callers"]] == [("create", "default")]


class TestDeleted:
    """P190: deleting an endpoint is no way round those who call it."""

    async def test_the_gate_stands_while_callers_were_seen(self, alpha: Caller, beta: Caller, agent: Actor) -> None:
        name = await alpha.register(agent.url, services=listed(create={"input": OLD}), allow=["*"])
        await beta.v1(name, service="invoice", operation="create", input={"amount": 1})
        assert (await alpha.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        answer = await put(alpha, name, listed(create={"input": NEW}))
        check_problem(answer, 409, "contract_breaks")
        assert "deleted lately" in answer.json["detail"]
        assert [one["namespace"] for one in answer.json["errors"][0]["callers"]] == ["beta"]
        check_problem(await alpha.get(f"/v1/endpoints/{name}"), 404, "unknown_endpoint")
        check_problem(await put(alpha, name, None), 409, "contract_breaks")
        forced = await put(alpha, name, listed(create={"input": NEW}), "?force=true")
        assert forced.status == 201, forced
        assert forced.json["contract_change"]["forced"]
        (kept,) = (await alpha.get(f"/v1/endpoints/{name}/contract")).json["changes"]
        assert (kept["forced"], len(kept["breaks"])) == (True, 2)
        # What was forced is what the next one is compared with, deleted once more or not.
        assert (await alpha.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        assert (await put(alpha, name, listed(create={"input": NEW}))).status == 201

    async def test_what_nobody_called_may_come_back_as_anything(self, alpha: Caller, beta: Caller) -> None:
        name = await register(alpha, listed(create={"input": OLD}), allow=["*"])
        assert (await alpha.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        assert (await put(alpha, name, listed(create={"input": NEW}))).status == 201
        assert (await alpha.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        assert (await put(beta, name, listed(other={}))).status == 201, "the name is free; it promised nothing"


class TestBehind:
    async def test_instances_say_which_contract_they_came_with(self, alpha: Caller, agent: Actor) -> None:
        """P191: after a forced break an older instance gets work as before, and is told from the newer one."""
        name = await register(alpha, listed(create={"input": OLD}), allow=["*"])

        async def beat(instance: str, **more: Any) -> dict[str, Any]:
            body = {"url": agent.url, **more}
            answer = await alpha.ask("PUT", f"/v1/endpoints/{name}/instances/{instance}", (), body)
            assert answer.status in (200, 201), answer
            return answer.json

        async def shown() -> dict[str, tuple[int, bool]]:
            record = (await alpha.get(f"/v1/endpoints/{name}")).json
            assert record["contract"] == record["version"]
            return {one["id"]: (one["contract"], one["behind"]) for one in record["instances"]}

        await beat("old")
        assert await shown() == {"old": (1, False)}
        assert (await put(alpha, name, listed(create={"input": NEW}), "?force=true")).status == 200
        await beat("new", fresh=True)
        assert (await beat("old"))["behind"], "a heartbeat is no new process"
        assert await shown() == {"old": (1, True), "new": (2, False)}
        await alpha.v1(name, service="invoice", operation="create", input={"amount": 1, "vat": "x"})
        await beat("old", fresh=True)
        assert await shown() == {"old": (2, False), "new": (2, False)}

    async def test_other_changes_of_a_registration_leave_nobody_behind(self, alpha: Caller, agent: Actor) -> None:
        """P191."""
        name = await register(alpha, listed(create={"input": OLD}), allow=["*"])
        path = f"/v1/endpoints/{name}/instances/one"
        assert (await alpha.ask("PUT", path, (), {"url": agent.url})).status == 201
        body = {"services": listed(create={"input": OLD}), "allow": ["*"], "description": "another"}
        assert (await alpha.ask("PUT", f"/v1/endpoints/{name}", (), body)).status == 200
        record = (await alpha.get(f"/v1/endpoints/{name}")).json
        (one,) = record["instances"]
        assert (record["version"], record["contract"], one["contract"], one["behind"]) == (2, 1, 1, False)


class TestOpenApi:
    async def test_each_endpoint_has_its_document(self, caller: Caller) -> None:
        """P181."""
        tree = {"$defs": {"T": {"properties": {"kids": {"items": {"$ref": "#/$defs/T"}}}}}, "$ref": "#/$defs/T"}
        operations = {"create": {"input": NEW, "output": DONE}, "a/b ü": {"input": tree}, "any": {}}
        services = [*listed(**operations), {"name": "open"}]
        name = await register(caller, services, description="Bills.")
        document = (await caller.get(f"/v1/endpoints/{name}/openapi.json")).json
        validate(document)
        assert document["info"]["title"] == name
        base = f"/nexus/endpoints/{name}/services"
        assert set(document["paths"]) == {
            f"{base}/invoice/create",
            f"{base}/invoice/a%2Fb%20%C3%BC",
            f"{base}/invoice/any",
            f"{base}/open/{{operation}}",
        }
        create = document["paths"][f"{base}/invoice/create"]["post"]
        assert create["requestBody"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/invoice.create.input"
        }
        assert document["components"]["schemas"]["invoice.create.input"] == NEW
        assert "{$request.query.callback}" in create["callbacks"]["completed"]
        assert "invoice.create" in document["webhooks"]
        recursive = document["components"]["schemas"]["invoice.a_b__.input"]
        assert recursive["$ref"] == "#/components/schemas/invoice.a_b__.input/$defs/T"

    async def test_one_service_and_none(self, caller: Caller) -> None:
        """P181."""
        name = await register(caller, [*listed(create={}), {"name": "open"}])
        one = (await caller.get(f"/v1/endpoints/{name}/openapi.json?service=open")).json
        assert [path.rpartition("/services/")[2] for path in one["paths"]] == ["open/{operation}"]
        check_problem(await caller.get(f"/v1/endpoints/{name}/openapi.json?service=nope"), 404, "unknown_service")
        free = await caller.register(None)
        document = (await caller.get(f"/v1/endpoints/{free}/openapi.json")).json
        validate(document)
        assert list(document["paths"]) == [f"/nexus/endpoints/{free}/services/{{service}}/{{operation}}"]

    async def test_only_who_may_call_sees_it(self, alpha: Caller, beta: Caller) -> None:
        name = await register(alpha, listed(create={}))
        for path in ("openapi.json", "contract"):
            check_problem(await beta.get(f"/v1/endpoints/{name}/{path}"), 404, "unknown_endpoint")
