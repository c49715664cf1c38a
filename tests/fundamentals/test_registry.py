"""The registry, one idea per test: real gateways on real sockets over the real store, seen through HTTP.

Two teams: `alpha` owns what is registered here, `beta` is the neighbour.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from gateway.app import Mesh, create_app
from gateway.server import bind, with_port
from gateway.settings_file import load
from mesh.clock import monotonic_s, sleep
from mesh.store.catalog import CatalogStore
from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from registry.spec import SPEC_BYTES_MAX

ALPHA, BETA = "alpha-key-0123456789", "beta-key-0123456789"
SETTINGS = f"""
[[namespaces]]
name = "alpha"
keys = ["{ALPHA}"]
[[namespaces]]
name = "beta"
keys = ["{BETA}"]
"""
URL = "http://127.0.0.1:9"
HTTP = {"kind": "http", "url": URL}


class Gateway:
    """A running gateway and a client of each team."""

    def __init__(self, mesh: Mesh, alpha: httpx.AsyncClient, beta: httpx.AsyncClient) -> None:
        self.mesh = mesh
        self.alpha = alpha
        self.beta = beta

    async def record(self, name: str = "summarizer") -> dict[str, Any]:
        return (await self.alpha.get(f"/v1/endpoints/{name}")).json()

    def admits(self, name: str = "summarizer") -> bool:
        """Whether the hot path would send a request of that endpoint somewhere."""
        return self.mesh.router.choose(self.mesh.catalog.find(name, "alpha")) is not None


@asynccontextmanager
async def serving(store: EmbeddedStore, settings_file: Path | None) -> AsyncIterator[Gateway]:
    listener = bind("127.0.0.1", 0)
    settings = with_port(load(settings_file, env={}), listener)
    mesh = Mesh(settings, store.address, memory=None, exclusive=False)
    await mesh.start()
    config = uvicorn.Config(create_app(mesh), lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=settings.gateway.public_url, headers={"authorization": f"Bearer {key}"}, trust_env=False
                )
            )
            for key in (ALPHA, BETA)
        ]
        yield Gateway(mesh, *clients)
        mesh.drain()
    server.should_exit = True
    await task
    await mesh.stop()


Start = Callable[[], Awaitable[Gateway]]


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    """One more gateway on the same, emptied store, at every `await start()`."""
    path = tmp_path / "mesh.toml"
    path.write_text(SETTINGS)
    async with AsyncExitStack() as stack:

        async def one_more() -> Gateway:
            return await stack.enter_async_context(serving(embedded, path))

        yield one_more


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    return await start()


async def until(check: Callable[[], object], within_s: float = 5.0) -> None:
    end_s = monotonic_s() + within_s
    while not check():
        assert monotonic_s() < end_s, "it never came true"
        await sleep(0.005)


async def until_record(gateway: Gateway, within_s: float = 5.0, **wanted: Any) -> dict[str, Any]:
    end_s = monotonic_s() + within_s
    while True:
        record = await gateway.record()
        if wanted.items() <= record.items():
            return record
        assert monotonic_s() < end_s, record
        await sleep(0.02)


async def put(client: httpx.AsyncClient, name: str = "summarizer", **body: Any) -> httpx.Response:
    return await client.put(f"/v1/endpoints/{name}", json={"target": HTTP} | body)


async def beat(client: httpx.AsyncClient, instance: str = "i-1", **body: Any) -> httpx.Response:
    return await client.put(f"/v1/endpoints/summarizer/instances/{instance}", json={"url": URL} | body)


def problem(reply: httpx.Response) -> tuple[int, str]:
    assert reply.headers["content-type"] == "application/problem+json"
    return reply.status_code, reply.json()["code"]


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
        """Decision 33."""
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
            ('{"target": {"kind": "pull"}}', (400, "not_supported_yet")),
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
        """S17, decision 5: names are global, so the neighbour is told that this one is taken."""
        await put(gateway.alpha)
        assert problem(await put(gateway.beta)) == (409, "name_taken")
        assert (await gateway.record())["owner"] == "alpha"

    @pytest.mark.parametrize("allow", [[], ["beta"], ["*"]])
    async def test_a_neighbour_changes_nothing(self, gateway: Gateway, allow: list[str]) -> None:
        """S16: not even what it may call."""
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
        assert {problem(reply) for reply in replies} == {(404, "unknown_endpoint")}
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


class TestInstances:
    async def test_register_and_heartbeat_are_one_call(self, gateway: Gateway) -> None:
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        assert (await gateway.record())["health_why"] == "no instance has registered"
        first = await beat(gateway.alpha, version="1.2", weight=3)
        assert (first.status_code, first.json()["health"], first.json()["version"]) == (201, "healthy", "1.2")
        version = gateway.mesh.catalog.version
        again = await beat(gateway.alpha, version="1.2", weight=3)
        assert (again.status_code, again.json()["health_since"]) == (200, first.json()["health_since"])
        assert again.json()["lease_until"] > first.json()["lease_until"]
        assert gateway.mesh.catalog.version == version, "a heartbeat is no news for other gateways"
        await beat(gateway.alpha, version="1.3")
        assert gateway.mesh.catalog.version > version

    async def test_it_can_be_called_as_soon_as_it_registered(self, gateway: Gateway) -> None:
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        assert not gateway.admits()
        await beat(gateway.alpha)
        assert gateway.admits()

    async def test_a_silent_one_leaves_the_rotation_and_comes_back(self, gateway: Gateway) -> None:
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        await beat(gateway.alpha, ttl_ms=500)
        await until(lambda: not gateway.admits(), within_s=3)
        record = await until_record(gateway, health="offline")
        assert "no heartbeat for its ttl of 500 ms" in record["health_why"]
        assert record["instances"][0]["health"] == "offline"
        assert record["health_since"] == record["instances"][0]["lease_until"]
        await beat(gateway.alpha, ttl_ms=500)
        assert gateway.admits()

    async def test_a_drained_one_gets_nothing_new_and_is_gone_when_its_lease_ends(self, gateway: Gateway) -> None:
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        await beat(gateway.alpha, ttl_ms=1_000)
        for _ in range(2):  # repeating it changes nothing
            reply = await gateway.alpha.delete("/v1/endpoints/summarizer/instances/i-1")
            assert reply.status_code == 204
        assert not gateway.admits()
        record = await gateway.record()
        assert (record["health"], record["instances"][0]["health"]) == ("draining", "draining")
        await until_record(gateway, instances=[])
        unknown = await gateway.alpha.delete("/v1/endpoints/summarizer/instances/i-2")
        assert problem(unknown) == (404, "unknown_instance")

    @pytest.mark.parametrize("instance", ["target", "-x", "x%20y", "x" * 129])
    async def test_instance_ids_have_rules(self, gateway: Gateway, instance: str) -> None:
        await put(gateway.alpha)
        assert problem(await beat(gateway.alpha, instance)) == (400, "name_invalid")

    async def test_instances_have_a_cap(self, gateway: Gateway, link: Link) -> None:
        await put(gateway.alpha)
        store = CatalogStore(link)
        puts = [store.instance_put("summarizer", "alpha", f"i-{n}", b'{"url":"http://a"}', 60_000) for n in range(512)]
        await asyncio.gather(*puts)
        reply = await beat(gateway.alpha, "one-more")
        assert (problem(reply), "retry-after" in reply.headers) == ((429, "too_many_instances"), True)

    async def test_an_unknown_endpoint_has_no_instances(self, gateway: Gateway) -> None:
        assert problem(await beat(gateway.alpha)) == (404, "unknown_endpoint")


class TestSeveralGateways:
    async def test_a_registration_is_there_for_the_next_request_to_another_gateway(self, start: Start) -> None:
        one, two = await start(), await start()
        await put(one.alpha)
        assert (await two.alpha.get("/v1/endpoints/summarizer")).status_code == 200

    async def test_changes_reach_the_other_hot_path_with_its_next_beat(self, start: Start) -> None:
        one, two = await start(), await start()
        await put(one.alpha)
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version, within_s=3)
        assert two.admits()
        await one.alpha.post("/v1/endpoints/summarizer/pause")
        await until(lambda: two.mesh.catalog.find("summarizer", "alpha").paused, within_s=3)
        await one.alpha.delete("/v1/endpoints/summarizer")
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version, within_s=3)
        assert problem(await two.alpha.get("/v1/endpoints/summarizer"))[0] == 404

    async def test_a_heartbeat_heard_by_one_keeps_the_instance_in_both(self, start: Start) -> None:
        """A renewal does not move the version: the other reads the lease again before it would end."""
        one, two = await start(), await start()
        await one.alpha.put("/v1/endpoints/summarizer", json={})
        await beat(one.alpha, ttl_ms=1_000)
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version, within_s=3)
        end_s = monotonic_s() + 3.0
        while monotonic_s() < end_s:
            await beat(one.alpha, ttl_ms=1_000)
            assert two.admits()
            await sleep(0.3)
        await until(lambda: not two.admits(), within_s=4)

    async def test_an_instance_has_one_lease_over_all_gateways(self, start: Start) -> None:
        """It may talk to a different gateway with every heartbeat."""
        one, two = await start(), await start()
        await one.alpha.put("/v1/endpoints/summarizer", json={})
        for n in range(12):
            reply = await beat((one, two)[n % 2].alpha, ttl_ms=700)
            assert reply.json()["health"] == "healthy"
            assert reply.status_code == (200 if n else 201)
            await sleep(0.15)
        assert len((await two.record())["instances"]) == 1


class TestVersions:
    async def test_fields_of_a_newer_gateway_are_passed_over(self, gateway: Gateway, link: Link) -> None:
        """Old and new gateways share one store during a rolling upgrade."""
        document = b'{"description":"from tomorrow","canary":{"share":0.1},"policy":{"hedge_ms":5,"max_concurrency":2}}'
        await CatalogStore(link).endpoint_put(
            "summarizer", "alpha", "ep-new", document, if_match="", max_concurrency=2, rate_per_s=0
        )
        record = await gateway.record()
        assert (record["description"], record["policy"]["max_concurrency"]) == ("from tomorrow", 2)

    async def test_one_unreadable_document_hides_no_other(self, gateway: Gateway, link: Link) -> None:
        await CatalogStore(link).endpoint_put(
            "broken", "alpha", "ep-broken", b'{"policy":5}', if_match="", max_concurrency=0, rate_per_s=0
        )
        await put(gateway.alpha)
        names = [one["name"] for one in (await gateway.alpha.get("/v1/endpoints")).json()["items"]]
        assert names == ["summarizer"]


class TestWatch:
    async def test_a_stream_shows_what_is_there_and_then_every_change(self, gateway: Gateway) -> None:
        await put(gateway.alpha, "old")
        async with gateway.alpha.stream("GET", "/v1/endpoints?watch=true", timeout=10) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = sse(reply)
            assert await next_event(events) == ("endpoint", "old", "healthy")
            await gateway.alpha.put("/v1/endpoints/summarizer", json={})
            assert await next_event(events) == ("endpoint", "summarizer", "offline")
            await beat(gateway.alpha, ttl_ms=500)
            assert await next_event(events) == ("endpoint", "summarizer", "healthy")
            assert await next_event(events) == ("endpoint", "summarizer", "offline")  # nobody wrote: its lease ended
            await gateway.alpha.delete("/v1/endpoints/old")
            assert await next_event(events) == ("removed", "old", "")

    async def test_a_watcher_sees_its_own_namespace_only(self, gateway: Gateway) -> None:
        await put(gateway.alpha, "hidden")
        async with gateway.beta.stream("GET", "/v1/endpoints?watch=true", timeout=10) as reply:
            events = sse(reply)
            await put(gateway.alpha, "shown", allow=["beta"])
            assert (await next_event(events))[1] == "shown"
            await put(gateway.alpha, "shown", allow=[])
            assert await next_event(events) == ("removed", "shown", "")


async def sse(reply: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in reply.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


async def next_event(events: AsyncIterator[tuple[str, Any]]) -> tuple[str, str, str]:
    async with asyncio.timeout(5):
        kind, data = await anext(events)
    return kind, data["name"], data.get("health", "")


class TestWithoutKeys:
    async def test_only_this_machine_by_its_own_name(self, link: Link, embedded: EmbeddedStore) -> None:
        """Decision 24, and no DNS rebinding."""
        async with serving(embedded, None) as gateway:
            del gateway.alpha.headers["authorization"]
            assert (await put(gateway.alpha)).json()["owner"] == "default"
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
                assert (await gateway.alpha.get("/v1/endpoints", headers=headers)).status_code == 403
