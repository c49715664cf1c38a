"""The registry's endpoints, one idea per test: real gateways on real sockets over the real store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from registry.spec import SPEC_BYTES_MAX
from tests.fundamentals.registering import HTTP, URL, Gateway, Start, beat, gateways, problem, put, serving


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    return await start()


class TestEndpoints:
    async def test_a_registration_is_created_then_replaced(self, gateway: Gateway) -> None:
        first = await put(gateway.alpha)
        assert (first.status_code, first.headers["etag"]) == (201, '"v1"')
        assert first.headers["location"] == "/v1/endpoints/summarizer"
        second = await put(gateway.alpha, description="sums up")
        assert (second.status_code, second.headers["etag"], second.json()["description"]) == (200, '"v2"', "sums up")
        assert second.json()["id"] == first.json()["id"]

    async def test_putting_the_same_again_changes_nothing(self, gateway: Gateway) -> None:
        await put(gateway.alpha)
        version = gateway.mesh.catalog.version
        assert (await put(gateway.alpha)).headers["etag"] == '"v1"'
        assert gateway.mesh.catalog.version == version

    async def test_the_record_is_flat_and_complete(self, gateway: Gateway) -> None:
        """P69."""
        services = [{"name": "docs", "operations": [{"name": "sum", "input": {"type": "object"}}]}]
        body = {"services": services, "allow": ["beta"], "labels": {"tier": "gold"}, "policy": {"max_concurrency": 3}}
        await put(gateway.alpha, **body)
        record = await gateway.record()
        assert (record["services"], record["allow"], record["labels"]) == (services, ["beta"], {"tier": "gold"})
        assert (record["owner"], record["target"], record["policy"]["max_concurrency"]) == ("alpha", HTTP, 3)
        assert record["policy"]["retry"]["max_attempts"] == 20  # defaults are shown
        assert (record["health"], record["running"], record["waiting"]) == ("healthy", 0, 0)
        assert [one["id"] for one in record["instances"]] == ["target"]

    async def test_if_match_guards_every_change(self, gateway: Gateway) -> None:
        absent = await gateway.alpha.put("/v1/endpoints/new", json={}, headers={"if-match": "*"})
        assert problem(absent) == (412, "precondition_failed")
        await put(gateway.alpha)
        for tag, status in [('"v2"', 412), ('W/"v1"', 412), ("v1", 412), ('"x"', 412), ('"v9", "v1"', 200), ("*", 200)]:
            body = {"description": tag}
            reply = await gateway.alpha.put("/v1/endpoints/summarizer", json=body, headers={"if-match": tag})
            assert reply.status_code == status, tag
        headers = {"if-match": '"v1"'}
        assert problem(await gateway.alpha.delete("/v1/endpoints/summarizer", headers=headers))[0] == 412
        headers = {"if-match": (await gateway.alpha.get("/v1/endpoints/summarizer")).headers["etag"]}
        assert (await gateway.alpha.delete("/v1/endpoints/summarizer", headers=headers)).status_code == 204

    async def test_a_deleted_endpoint_comes_back_fresh_under_its_old_id(self, gateway: Gateway) -> None:
        """Work that waits for it goes on; a pause of the old registration does not."""
        first = (await put(gateway.alpha)).json()
        await gateway.alpha.post("/v1/endpoints/summarizer/pause")
        assert (await gateway.alpha.delete("/v1/endpoints/summarizer")).status_code == 204
        assert problem(await gateway.alpha.get("/v1/endpoints/summarizer")) == (404, "unknown_endpoint")
        again = await put(gateway.alpha)
        assert (again.status_code, again.json()["id"], again.json()["paused"]) == (201, first["id"], False)

    async def test_pause_and_resume(self, gateway: Gateway) -> None:
        await put(gateway.alpha)
        for verb, paused in [("pause", True), ("pause", True), ("resume", False), ("resume", False)]:
            reply = await gateway.alpha.post(f"/v1/endpoints/summarizer/{verb}")
            assert (reply.status_code, reply.json()["paused"]) == (200, paused)

    async def test_the_work_of_an_endpoint_is_counted(self, gateway: Gateway) -> None:
        """Nobody lives there, so what is accepted waits; it does not fail."""
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        body = {"endpoint": "summarizer", "service": "docs", "operation": "sum", "input": {}}
        for _ in range(3):
            reply = await gateway.alpha.post("/v1/operations", json=body, headers={"prefer": "respond-async"})
            assert (reply.status_code, reply.json()["blocked"]) == (202, "no_instance")
        record = await gateway.record()
        assert (record["running"], record["waiting"], record["health"]) == (0, 3, "offline")


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("{", (400, "json_invalid")),
            ('{"labels": {"a": "1", "a": "2"}}', (400, "json_invalid")),
            ('{"policy": {"rate_per_s": NaN}}', (400, "json_invalid")),
            ("[" * 300, (400, "json_invalid")),
            ("", (422, "body_invalid")),
            ("[]", (422, "body_invalid")),
            ('{"colour": "red"}', (422, "body_invalid")),
            ('{"policy": {"breaker": {"failures": "5"}}}', (422, "body_invalid")),
            ('{"target": {"kind": "pull", "url": "http://127.0.0.1:1"}}', (422, "body_invalid")),
            ('{"target": {"url": "http://169.254.169.254/latest"}}', (400, "url_forbidden")),
            ('{"target": {"url": "http://10.0.0.1:9000/"}}', (400, "url_forbidden")),
            (json.dumps({"description": "d" * SPEC_BYTES_MAX}), (413, "too_large")),
        ],
    )
    async def test_a_bad_registration_is_refused_and_nothing_changes(
        self, gateway: Gateway, content: str, expected: tuple[int, str]
    ) -> None:
        await put(gateway.alpha, description="as it was")
        before = await gateway.record()
        headers = {"content-type": "application/json"}
        assert (
            problem(await gateway.alpha.put("/v1/endpoints/summarizer", content=content, headers=headers)) == expected
        )
        assert await gateway.record() == before

    @pytest.mark.parametrize(
        "url", ["ftp://a/", "http://user:pw@127.0.0.1/", "http://127.0.0.1/?q", "//x", "http://a b/"]
    )
    async def test_a_bad_url_is_400_for_endpoints_and_instances(self, gateway: Gateway, url: str) -> None:
        assert (await gateway.alpha.put("/v1/endpoints/other", json={"target": {"url": url}})).status_code == 400
        await put(gateway.alpha)
        assert (await beat(gateway.alpha, url=url)).status_code == 400
        assert problem(await gateway.alpha.get("/v1/endpoints/other"))[0] == 404

    @pytest.mark.parametrize(
        "name", ["a", "-ab", "ab-", "1ab", "a%2Fb", "a%00b", "%2e%2e", "a%252fb", "%ff%fe", "a%0d%0ab", "a" * 201]
    )
    async def test_a_bad_name_never_becomes_an_endpoint(self, gateway: Gateway, name: str) -> None:
        """S25: decoded once, and then it has to be a name."""
        reply = await gateway.alpha.put(f"/v1/endpoints/{name}", json={})
        assert reply.status_code in (400, 404)
        assert problem(await gateway.alpha.get(f"/v1/endpoints/{name}"))[0] == 404
        assert (await gateway.alpha.get("/v1/endpoints")).json()["items"] == []

    async def test_a_form_post_is_read_for_what_it_is(self, gateway: Gateway) -> None:
        """`curl -d` says form; there is one format, so the body is taken as JSON."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert (await gateway.alpha.put("/v1/endpoints/ab", content="{}", headers=headers)).status_code == 201

    async def test_the_caller_is_asked_for_a_key_before_the_body_is_looked_at(self, gateway: Gateway) -> None:
        headers = {"authorization": "Bearer nobody-0123456789"}
        reply = await gateway.alpha.put("/v1/endpoints/ab", content="{", headers=headers)
        assert problem(reply) == (401, "key_invalid")
        assert "www-authenticate" in reply.headers


class TestTeams:
    async def test_a_name_belongs_to_its_first_owner(self, gateway: Gateway) -> None:
        """S17: names are global, so the neighbour is told that this one is taken."""
        await put(gateway.alpha)
        assert problem(await put(gateway.beta)) == (409, "name_taken")
        assert (await gateway.record())["owner"] == "alpha"

    @pytest.mark.parametrize("allow", [[], ["beta"], ["*"]])
    async def test_a_neighbour_changes_nothing(self, gateway: Gateway, allow: list[str]) -> None:
        """S16, S30, P422: not even what it may call; whoever may call it is told whose it is, all others nothing."""
        await put(gateway.alpha, allow=allow)
        before = await gateway.record()
        beta = gateway.beta
        replies = [
            await beta.delete("/v1/endpoints/summarizer"),
            await beta.post("/v1/endpoints/summarizer/pause"),
            await beta.post("/v1/endpoints/summarizer/resume"),
            await beat(beta),
            await beta.delete("/v1/endpoints/summarizer/instances/target"),
        ]
        told = (403, "not_owner") if allow else (404, "unknown_endpoint")
        assert {problem(reply) for reply in replies} == {told}
        assert await gateway.record() == before

    async def test_what_is_not_for_you_is_not_there(self, gateway: Gateway) -> None:
        """S30: the very words of an endpoint that does not exist."""
        await put(gateway.alpha)
        hidden = (await gateway.beta.get("/v1/endpoints/summarizer")).json()
        absent = (await gateway.beta.get("/v1/endpoints/nowhere")).json()
        assert hidden == absent | {"detail": absent["detail"].replace("nowhere", "summarizer")}
        assert (await gateway.beta.get("/v1/endpoints")).json()["items"] == []

    async def test_who_may_call_sees_everything_but_addresses(self, gateway: Gateway) -> None:
        await put(gateway.alpha, allow=["beta"])
        await beat(gateway.alpha)
        record = (await gateway.beta.get("/v1/endpoints/summarizer")).json()
        assert (record["owner"], record["health"], record["target"]) == ("alpha", "healthy", {"kind": "http"})
        assert [one["id"] for one in record["instances"]] == ["i-1", "target"]
        assert URL not in json.dumps(record)

    async def test_permission_is_taken_back_at_once(self, gateway: Gateway) -> None:
        await put(gateway.alpha, allow=["*"])
        assert (await gateway.beta.get("/v1/endpoints/summarizer")).status_code == 200
        await put(gateway.alpha, allow=[])
        assert (await gateway.beta.get("/v1/endpoints/summarizer")).status_code == 404


class TestLists:
    async def test_pages_follow_each_other_by_name(self, gateway: Gateway) -> None:
        names = [f"agent-{n}" for n in range(5)]
        for name in reversed(names):
            await put(gateway.alpha, name)
        found: list[str] = []
        path = "/v1/endpoints?limit=2"
        for size in (2, 2, 1):
            reply = await gateway.alpha.get(path)
            items = reply.json()["items"]
            assert len(items) == size
            found += [one["name"] for one in items]
            cursor = reply.json()["next_cursor"]
            assert (cursor is None) == (size == 1) == ("link" not in reply.headers)
            path = reply.headers.get("link", "<>").partition(">")[0][1:]
        assert found == names

    async def test_filters_are_all_held(self, gateway: Gateway) -> None:
        services = [{"name": "docs", "operations": [{"name": "sum"}]}]
        await put(gateway.alpha, "one", services=services, labels={"tier": "gold", "zone": "eu"})
        await put(gateway.alpha, "two", services=[{"name": "docs"}], labels={"tier": "tin"})
        await put(gateway.alpha, "three")

        async def names(query: str) -> list[str]:
            items = (await gateway.alpha.get(f"/v1/endpoints?{query}")).json()["items"]
            return [one["name"] for one in items]

        assert await names("service=docs") == ["one", "two"]
        assert await names("service=docs&operation=sum") == ["one"]
        assert await names("operation=sum") == ["one"]
        assert await names("label=tier") == ["one", "two"]
        assert await names("label=tier=gold&label=zone=eu") == ["one"]
        assert await names("label.tier=tin") == ["two"]
        assert await names("label=tier=gold&label=zone=us") == []
        assert await names("service=nothing") == []

    async def test_bad_arguments_are_named(self, gateway: Gateway) -> None:
        assert problem(await gateway.alpha.get("/v1/endpoints?limit=0")) == (422, "parameter_invalid")
        assert problem(await gateway.alpha.get("/v1/endpoints?cursor=!")) == (400, "cursor_invalid")


class TestWithoutKeys:
    async def test_only_this_machine_by_its_own_name(self, link: Link, embedded: EmbeddedStore) -> None:
        """P5, and no DNS rebinding."""
        async with serving(embedded, None) as gateway:
            del gateway.alpha.headers["authorization"]
            assert (await put(gateway.alpha)).json()["owner"] == "default"
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
                assert (await gateway.alpha.get("/v1/endpoints", headers=headers)).status_code == 403
