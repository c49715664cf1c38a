"""What operators see: health, readiness, metrics, the document of the routes; and slow or rude connections."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from openapi_spec_validator import validate

from gateway.app import bare_app
from gateway.openapi import document
from tests.surface.actors import Actor, handler_error
from tests.surface.gateways import ROOT, Caller, Gateway
from tests.surface.wire import Connection, ask, read_head


async def test_healthz(caller: Caller) -> None:
    """P110."""
    answer = await caller.get("/healthz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_readyz_says_what_an_acknowledgement_is_worth(caller: Caller) -> None:
    """P110."""
    answer = await caller.get("/readyz")
    assert (answer.status, answer.json["status"], answer.json["gateways"]) == (200, "ready", 1)
    assert "always" in json.dumps(answer.json["store"])


async def test_metrics_count(caller: Caller, agent: Actor) -> None:
    """P110: closed label sets; ids of endpoints, words of outcomes."""
    agent.replies(handler_error(400, "BAD_REQUEST"))
    name = await caller.register(agent.url)
    before = await caller.gauge('mesh_operations_ended_total{state="failed"}')
    await caller.nexus(name)
    answer = await caller.get("/metrics")
    assert answer["content-type"].startswith("text/plain")
    endpoint_id = (await caller.get(f"/v1/endpoints/{name}")).json["id"]
    assert f'mesh_attempts_total{{endpoint="{endpoint_id}",outcome="refused"}} 1.0' in answer.body.decode()
    assert await caller.gauge('mesh_operations_ended_total{state="failed"}') == before + 1
    assert await caller.gauge("mesh_store_up") == 1
    assert "default-key" not in answer.body.decode()


class TestOpenApi:
    def made(self) -> dict[str, Any]:
        return json.loads(json.dumps(document(bare_app())))

    def test_the_file_is_what_the_routes_say(self) -> None:
        """P110: `python -m gateway.openapi > specs/openapi.json` writes it."""
        assert json.loads((Path(ROOT) / "specs" / "openapi.json").read_text()) == self.made()

    def test_it_is_valid(self) -> None:
        """P110."""
        validate(self.made())

    async def test_it_is_served(self, caller: Caller) -> None:
        """P110."""
        assert (await caller.get("/openapi.json")).json == self.made()

    async def test_the_page_needs_nothing_from_elsewhere(self, caller: Caller) -> None:
        """P110: it names every route, and a browser without internet shows it whole."""
        page = (await caller.get("/docs")).body.decode()
        for path in self.made()["paths"]:
            assert f"</b> {path}</code>" in page, path
        assert 'href="openapi.json"' in page
        assert not re.search(r"<script|<iframe|(src|href)=.(https?:)?//", page)

    def test_every_route_of_the_contract_is_there(self) -> None:
        """P110: the hot ones too."""
        paths = self.made()["paths"]
        nexus = "/nexus/endpoints/{endpoint}/services/{service}/{operation}"
        for path, methods in {
            nexus: {"post", "get"},
            f"{nexus}/cancel": {"post"},
            f"{nexus}/result": {"get"},
            "/nexus/callback": {"post"},
            "/v1/operations": {"post", "get"},
            "/v1/operations/{operation_id}": {"get"},
            "/v1/operations/{operation_id}/result": {"get"},
            "/v1/operations/{operation_id}/events": {"get"},
            "/v1/operations/{operation_id}/cancel": {"post"},
            "/v1/deliveries": {"get"},
            "/v1/deliveries/{delivery_id}/redeliver": {"post"},
            "/v1/tasks/heartbeat": {"post"},
            "/v1/endpoints/{name}": {"put", "get", "delete"},
        }.items():
            assert methods <= paths[path].keys(), path

    async def test_a_record_keeps_its_schema(self, caller: Caller, agent: Actor) -> None:
        """P65, P110."""
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - nobody else here needs it

        components = self.made()["components"]
        schema = {"$ref": "#/components/schemas/Record", "components": components}
        Draft202012Validator(schema).validate((await caller.v1(await caller.register(agent.url), input=1)).json)


class TestConnections:
    async def test_one_connection_many_requests(self, keyless: Gateway) -> None:
        """P2: keep-alive, in order, also pipelined."""
        async with await Connection.open(keyless.port) as connection:
            for target in ("/healthz", "/v1/operations/x", "/healthz", "/nexus/endpoints/e"):
                connection.send("GET", target)
            assert [(await connection.answer()).status for _ in range(4)] == [200, 404, 200, 404]

    async def test_expect_100(self, caller: Caller, agent: Actor) -> None:
        """P2: curl asks before it sends much."""
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            head = {"expect": "100-continue", "content-length": "3"}
            connection.send("POST", f"/nexus/endpoints/{name}/services/s/o", head)
            assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            connection.writer.write(b"abc")
            assert (await connection.answer()).status == 200
        assert (agent.calls[0].body, agent.calls[0].get("expect")) == (b"abc", None)

    async def test_an_answer_before_the_body_is_over(self, caller: Caller, agent: Actor) -> None:
        """P2: the connection survives a body that was refused, or is closed cleanly."""
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", "/v1/operations", {"content-length": "3000000"})
            assert (await connection.answer()).status == 413

    async def test_hot_and_ordinary_routes_share_a_connection(self, caller: Caller, agent: Actor) -> None:
        """P2: answers leave in the order of the requests, whoever answers, and each has its own body."""
        name = await caller.register(agent.url)
        start = f"/nexus/endpoints/{name}/services/s/o"
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", start, {"content-type": "application/json"}, b"1")
            connection.send("GET", "/healthz")
            connection.send("HEAD", start)
            chunked = b"1\r\n2\r\n0\r\n\r\n"
            connection.send("POST", f"http://localhost{start}", {"transfer-encoding": "chunked"}, chunked)
            connection.send("GET", "/v1/operations/x/result")
            first, health = await connection.answer(), await connection.answer()
            assert (first.status, health.status) == (200, 200)
            bodyless, headers = await read_head(connection.reader)  # no body, whatever its content-length says
            assert (bodyless.split()[1], dict(headers)["content-length"] != "0") == ("400", True)
            assert [(await connection.answer()).status for _ in range(2)] == [200, 404]
        assert [call.body for call in agent.calls] == [b"1", b"2"]

    async def test_a_hot_route_closes_when_asked(self, caller: Caller, agent: Actor) -> None:
        """P2: by `Connection: close` and by HTTP/1.0."""
        name = await caller.register(agent.url)
        for version, header in ((b"1.1", b"connection: close\r\n"), (b"1.0", b"")):
            async with await Connection.open(caller.gateway.port) as connection:
                connection.writer.write(
                    b"POST /nexus/endpoints/%b/services/s/o HTTP/%b\r\nhost: localhost\r\n%bcontent-length: 0\r\n\r\n"
                    % (name.encode(), version, header)
                )
                answer = await connection.answer()
                assert (answer.status, answer.get("connection")) == (200, "close")
                assert await connection.reader.read() == b""

    async def test_a_body_that_grows_too_large(self, caller: Caller) -> None:
        """P2: refused as soon as it is, and the next request is heard."""
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", "/v1/operations", {"transfer-encoding": "chunked"})
            for _ in range(3):
                connection.writer.write(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            assert (await connection.answer()).status == 413
            connection.writer.write(b"0\r\n\r\n")
            connection.send("GET", "/healthz")
            assert (await connection.answer()).status == 200

    async def test_what_is_no_http(self, keyless: Gateway) -> None:
        """P2."""
        for raw in (
            b"\x16\x03\x01\x00\x01\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\n\r\n",
        ):
            async with await Connection.open(keyless.port) as connection:
                connection.writer.write(raw)
                assert (await connection.answer()).status == 400
        assert (await ask(keyless.port, "GET", "/healthz")).status == 200
