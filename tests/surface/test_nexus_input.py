"""What goes in over Nexus: names, bodies, headers, links; and what is refused, changing nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.surface.actors import Actor, Reply
from tests.surface.checks import check_failure
from tests.surface.gateways import Caller
from tests.surface.wire import Connection

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (b"", {}),
            (b"null", {"content-type": "application/json"}),
            (b"\x00\xff\r\n\r\n", {"content-type": "application/octet-stream"}),
            (b' {"a":\t1.10, "\\u00e9": "\xc3\xa9"} ', {"content-type": "application/json"}),
            (b"{not json", {"content-type": "application/json"}),
            (b"\x08\x01", {"content-type": 'application/x-protobuf; message-type="a.B"'}),
            (b"x" * 200_000, {"content-type": "text/plain; charset=utf-8"}),
        ],
        ids=["null", "json-null", "bytes", "spaces", "no-json", "protobuf", "large"],
    )
    async def test_byte_for_byte_both_ways(
        self, caller: Caller, agent: Actor, body: bytes, headers: dict[str, str]
    ) -> None:
        """P17, P41: body and type, whatever they are; null has neither."""

        async def echo(call: Any, _writer: Any) -> Reply:
            kind = call.get("content-type")
            return Reply(200, call.body, {"content-type": kind} if kind else {})

        agent.script = echo
        answer = await caller.nexus(await caller.register(agent.url), body, headers, json=False)
        (call,) = agent.calls
        assert (call.body, call.get("content-type")) == (body, headers.get("content-type"))
        assert (answer.status, answer.body, answer.get("content-type")) == (200, body, headers.get("content-type"))
        late = await caller.result(call.operation)
        assert (late.body, late.get("content-type")) == (body, headers.get("content-type"))

    async def test_bytes_without_a_type_are_octets(self, caller: Caller, agent: Actor) -> None:
        """P17."""
        await caller.nexus(await caller.register(agent.url), b"abc", json=False)
        assert agent.calls[0]["content-type"] == "application/octet-stream"

    async def test_an_empty_chunked_body_is_null(self, caller: Caller, agent: Actor) -> None:
        """P17: how the Go client sends nil."""
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            target = f"/nexus/endpoints/{name}/services/s/o"
            connection.send("POST", target, {"transfer-encoding": "chunked"}, b"0\r\n\r\n")
            assert (await connection.answer()).status == 200
        assert (agent.calls[0].body, agent.calls[0].get("content-type")) == (b"", None)

    async def test_chunks_are_joined(self, caller: Caller, agent: Actor) -> None:
        """P17."""
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            target = f"/nexus/endpoints/{name}/services/s/o"
            connection.send("POST", target, {"transfer-encoding": "chunked"}, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
            assert (await connection.answer()).status == 200
        assert agent.calls[0].body == b"abc"


class TestNames:
    @pytest.mark.parametrize(
        "name", ["a/b", "a b", "ä→日本", "100%", "%2F", "a?b#c", "a+b", "'\"<>", "cancel", "result", "x" * 1000]
    )
    async def test_any_characters_decoded_once(self, caller: Caller, agent: Actor, name: str) -> None:
        """P1, P40: the agent gets the same names."""
        endpoint = await caller.register(agent.url)
        operation = await caller.begin(endpoint, service=name, operation="o" + name[1:])
        record = await caller.record(operation)
        assert (record["service"], record["operation"]) == (name, "o" + name[1:])
        call = await agent.until(1)
        assert call.path == f"/{quote(name, safe='')}/{quote('o' + name[1:], safe='')}"

    @pytest.mark.parametrize(
        ("path", "status", "kind"),
        [
            ("services/s/%zz", 400, "BAD_REQUEST"),
            ("services/s/%2", 400, "BAD_REQUEST"),
            ("services/s/%ff", 400, "BAD_REQUEST"),
            ("services/s/%00", 400, "BAD_REQUEST"),
            ("services/s/a%0d%0aX", 400, "BAD_REQUEST"),
            ("services/s/%2e%2e", 400, "BAD_REQUEST"),
            ("services/../o", 400, "BAD_REQUEST"),
            ("services/s/" + "x" * 1001, 400, "BAD_REQUEST"),
            ("services/" + "ä" * 501 + "/o", 400, "BAD_REQUEST"),
            ("services//o", 404, "NOT_FOUND"),
            ("services/s/", 404, "NOT_FOUND"),
            ("services/s", 404, "NOT_FOUND"),
            ("services/s/o/x", 404, "NOT_FOUND"),
            ("services/s/o/x/y", 404, "NOT_FOUND"),
            ("service/s/o", 404, "NOT_FOUND"),
        ],
    )
    async def test_paths_that_lead_nowhere(
        self, caller: Caller, agent: Actor, path: str, status: int, kind: str
    ) -> None:
        """P1, P8."""
        name = await caller.register(agent.url)
        target = f"/nexus/endpoints/{name}/{quote(path, safe='/%.')}"
        check_failure(await caller.post(target), status, kind)
        assert agent.calls == []

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
    async def test_other_methods(self, caller: Caller, agent: Actor, method: str) -> None:
        """P8: 400, as the reference server answers."""
        name = await caller.register(agent.url)
        check_failure(
            await caller.ask(method, f"/nexus/endpoints/{name}/services/s/o"),
            400,
            "BAD_REQUEST",
            "method_not_supported",
        )


class TestUnknown:
    async def test_endpoint(self, caller: Caller) -> None:
        """P22."""
        check_failure(await caller.nexus("nobody"), 404, "NOT_FOUND", "unknown_endpoint")
        check_failure(await caller.nexus("x%20y"), 404, "NOT_FOUND", "unknown_endpoint")

    async def test_service_and_operation_of_a_closed_list(self, caller: Caller, agent: Actor) -> None:
        """P22: an open list takes any name."""
        services = [{"name": "s", "operations": [{"name": "o"}]}, {"name": "open"}]
        name = await caller.register(agent.url, services=services)
        check_failure(await caller.nexus(name, service="t"), 404, "NOT_FOUND", "unknown_service")
        check_failure(await caller.nexus(name, service="s", operation="p"), 404, "NOT_FOUND", "unknown_operation_name")
        assert (await caller.nexus(name, service="s", operation="o")).status == 200
        assert (await caller.nexus(name, service="open", operation="any")).status == 200


class TestSchema:
    async def test_a_breach_is_400_here(self, caller: Caller, agent: Actor) -> None:
        """P20, P2."""
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        name = await caller.register(
            agent.url, services=[{"name": "s", "operations": [{"name": "o", "input": schema}]}]
        )
        names: dict[str, Any] = {"service": "s", "operation": "o"}
        check_failure(await caller.nexus(name, b'{"n":"x"}', **names), 400, "BAD_REQUEST", "schema_breach")
        check_failure(await caller.nexus(name, b"", json=False, **names), 400, "BAD_REQUEST", "schema_breach")
        check_failure(await caller.nexus(name, b"{", **names), 400, "BAD_REQUEST", "json_invalid")
        assert agent.calls == []
        assert (await caller.nexus(name, b'{"n": 1}', **names)).status == 200
