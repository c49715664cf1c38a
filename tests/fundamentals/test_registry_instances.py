"""Agents come, go and are seen by several gateways, one idea per test; leases run in real time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.pull import attendance
from mesh.clock import monotonic_s, sleep
from mesh.store.catalog import CatalogStore
from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from registry import presence
from tests.fundamentals.registering import Gateway, Start, beat, gateways, problem, put, until, until_record


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    return await start()


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
        await until(lambda: not gateway.admits())
        record = await until_record(gateway, health="offline")
        assert "no heartbeat for its ttl of 500 ms" in record["health_why"]
        assert record["instances"][0]["health"] == "offline"
        assert record["health_since"] == record["instances"][0]["lease_until"]
        await beat(gateway.alpha, ttl_ms=20_000)
        assert gateway.admits()

    async def test_a_drained_one_gets_nothing_new_and_is_gone_when_its_lease_ends(self, gateway: Gateway) -> None:
        await gateway.alpha.put("/v1/endpoints/summarizer", json={})
        await beat(gateway.alpha, ttl_ms=2_500)
        versions: list[int] = []
        for _ in range(2):  # repeating it changes nothing
            reply = await gateway.alpha.delete("/v1/endpoints/summarizer/instances/i-1")
            assert reply.status_code == 204
            versions.append(gateway.mesh.catalog.version)
        assert versions[0] == versions[1]
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
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version)
        assert two.admits()
        await one.alpha.post("/v1/endpoints/summarizer/pause")
        await until(lambda: two.mesh.catalog.find("summarizer", "alpha").paused)
        await one.alpha.delete("/v1/endpoints/summarizer")
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version)
        assert problem(await two.alpha.get("/v1/endpoints/summarizer"))[0] == 404

    async def test_a_heartbeat_heard_by_one_keeps_the_instance_in_both(self, start: Start) -> None:
        """A renewal does not move the version: the other reads the lease again before it would end."""
        one, two = await start(), await start()
        await one.alpha.put("/v1/endpoints/summarizer", json={})
        await beat(one.alpha, ttl_ms=2_000)
        await until(lambda: two.mesh.catalog.version == one.mesh.catalog.version)
        end_s = monotonic_s() + 4.0
        while monotonic_s() < end_s:
            await beat(one.alpha, ttl_ms=2_000)
            assert two.admits()
            await sleep(0.3)
        await until(lambda: not two.admits())

    async def test_an_instance_has_one_lease_over_all_gateways(self, start: Start) -> None:
        """It may talk to a different gateway with every heartbeat."""
        one, two = await start(), await start()
        await one.alpha.put("/v1/endpoints/summarizer", json={})
        for n in range(12):
            reply = await beat((one, two)[n % 2].alpha, ttl_ms=5_000)
            assert reply.json()["health"] == "healthy"
            assert reply.status_code == (200 if n else 201)
            await sleep(0.15)
        assert len((await two.record())["instances"]) == 1


class TestWatch:
    async def test_a_stream_shows_what_is_there_and_then_every_change(self, gateway: Gateway) -> None:
        await put(gateway.alpha, "old")
        async with gateway.alpha.stream("GET", "/v1/endpoints?watch=true", timeout=10) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = sse(reply)
            assert await next_event(events) == ("endpoint", "old", "healthy")
            await gateway.alpha.put("/v1/endpoints/summarizer", json={})
            assert await next_event(events) == ("endpoint", "summarizer", "offline")
            await beat(gateway.alpha, ttl_ms=2_000)
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


    async def test_a_watcher_goes_on_behind_its_cursor(self, gateway: Gateway) -> None:
        """P315: what changed meanwhile, and nothing else; after a restart it is told to begin anew."""
        await put(gateway.alpha, "same")
        await put(gateway.alpha, "goes")
        await put(gateway.alpha, "hidden-soon", allow=["beta"])
        cursors: dict[str, str] = {}
        for team, client in (("alpha", gateway.alpha), ("beta", gateway.beta)):
            async with client.stream("GET", "/v1/endpoints?watch=true", timeout=10) as reply:
                async for line in reply.aiter_lines():
                    if line.startswith("id: "):
                        cursors[team] = line.removeprefix("id: ")
                        break
        await put(gateway.alpha, "comes")
        await put(gateway.alpha, "hidden-soon")
        await gateway.alpha.delete("/v1/endpoints/goes")
        after = {"last-event-id": cursors["alpha"]}
        async with gateway.alpha.stream("GET", "/v1/endpoints?watch=true", headers=after, timeout=10) as reply:
            events = sse(reply)
            seen = [(await next_event(events))[:2] for _ in range(3)]
            assert seen == [("endpoint", "comes"), ("endpoint", "hidden-soon"), ("removed", "goes")]
        path = f"/v1/endpoints?watch=true&cursor={cursors['beta']}"
        async with gateway.beta.stream("GET", path, timeout=10) as reply:
            assert await next_event(sse(reply)) == ("removed", "hidden-soon", "")
        after = {"last-event-id": f"another{cursors['alpha']}"}
        async with gateway.alpha.stream("GET", "/v1/endpoints?watch=true", headers=after, timeout=10) as reply:
            events = sse(reply)
            seen = [(await next_event(events))[:2] for _ in range(4)]
            assert seen == [("reset", ""), *[("endpoint", name) for name in ("comes", "hidden-soon", "same")]]


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
    return kind, data.get("name", ""), data.get("health", "")


async def test_a_drained_one_that_polls_is_there_while_it_asks_and_drains_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P293, P432: silent for its lease it is offline and stays so; when it asks again it gets nothing, as before."""
    monkeypatch.setattr(presence, "ATTENDING_MS", 400)
    monkeypatch.setattr(attendance, "ATTENDING_MS", 400)
    monkeypatch.setattr(attendance, "RENEW_S", 0)
    monkeypatch.setattr(attendance, "LOOK_S", 3_600)  # leases are looked after when this test says so
    gateway = await start()
    await gateway.alpha.put("/v1/endpoints/summarizer", json={"target": {"kind": "pull"}})

    async def poll() -> dict[str, Any]:
        asked = {"instance": "laptop", "max": 1, "wait_ms": 0}
        return (await gateway.alpha.post("/v1/endpoints/summarizer/poll", json=asked)).json()

    async def until_offline() -> dict[str, Any]:
        record = await until_record(gateway, health="offline")
        return record["instances"][0]

    assert await poll() == {"tasks": []}
    drained = await gateway.alpha.post("/v1/endpoints/summarizer/instances/laptop/drain")
    assert drained.status_code == 204
    for _ in range(2):
        gone = await until_offline()
        assert (gone["health"], "draining since" in gone["health_why"]) == ("offline", True)
        assert await poll() == {"tasks": [], "draining": True}, "its lease was over, its name was in the books"
        back = (await gateway.record())["instances"][0]
        assert back["lease_until"] > gone["lease_until"]
    gone = await until_offline()
    for _ in range(3):
        await gateway.mesh.attendance.renew()
    assert (await gateway.record())["instances"] == [gone], "nobody asked"
