"""Traffic that users can see: two gateways on one store, one busy endpoint, three teams that call it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import mesh
from mesh.clock import monotonic_s, sleep
from tests.servers import SAFE, RawServer
from tests.surface.actors import Actor, Call, Reply, as_json
from tests.surface.checks import check_failure, check_problem
from tests.surface.gateways import ASYNC, ROOT, TOKENS, Caller, Gateway
from tests.surface.wire import Answer

KEYS = {name: f"{name}-key-0123456789" for name in ("owner", "a", "b", "c")}


class Site:
    """Two gateways, and a caller of each namespace at each."""

    def __init__(self, store: RawServer, gateways: list[Gateway]) -> None:
        self.store = store
        self.gateways = gateways

    def caller(self, namespace: str, gateway: int = 0) -> Caller:
        return Caller(self.gateways[gateway], KEYS[namespace])

    async def register(self, agent: Actor, **policy: Any) -> str:
        return await self.caller("owner").register(agent.url, policy=policy, allow=["*"])

    async def queue(self, name: str, viewer: str = "owner", gateway: int = 0) -> dict[str, Any]:
        answer = await self.caller(viewer, gateway).get(f"/v1/endpoints/{name}/queue")
        assert answer.status == 200, answer
        return answer.json

    async def until_idle(self, name: str) -> None:
        end_s = monotonic_s() + 10
        while (queue := await self.queue(name))["running"] or queue["waiting"]:
            assert monotonic_s() < end_s, queue
            await sleep(0.01)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("traffic")
    store = RawServer(directory, SAFE)
    store.wait_ready()
    settings = {
        "tokens": TOKENS,
        "store": {"url": f"unix://{store.address.path}"},
        "gateway": {"wait_default_ms": 0},
        "namespaces": [{"name": name, "keys": [key]} for name, key in KEYS.items()],
    }
    gateways = [Gateway(directory / name, settings) for name in ("one", "two")]
    try:
        for gateway in gateways:
            gateway.start()
        yield Site(store, gateways)
        for gateway in gateways:
            assert gateway.stop() == 0
            assert "Traceback" not in gateway.log.read_text()
    finally:
        for gateway in gateways:
            gateway.kill()
        store.kill()


class Holder:
    """An agent's script that answers nobody before it is told to."""

    def __init__(self, agent: Actor) -> None:
        self.free = asyncio.Event()
        self.namespaces: list[str] = []
        self.operations: list[str] = []
        agent.script = self.script

    async def script(self, call: Call, _writer: object) -> Reply:
        self.namespaces.append(call["mesh-namespace"])
        self.operations.append(call.operation)
        await self.free.wait()
        return as_json("done")


def samples(text: str, name: str, endpoint: str) -> dict[str, float]:
    """Of one family and endpoint, by namespace."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(f'{name}{{endpoint="{endpoint}"'):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('namespace="')[2].partition('"')[0]] = float(value)
    return found


def command_line(gateway: Gateway, *arguments: str, namespace: str = "owner") -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    env |= {"MESH_URL": gateway.url(), "MESH_KEY": KEYS[namespace]}
    ran = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return ran.stdout


async def test_the_queue_is_the_same_wherever_it_is_read(site: Site, agent: Actor) -> None:
    """P336: API, command line and /metrics, at any gateway; a caller sees the sums and its own part."""
    holder = Holder(agent)
    name = await site.register(agent, max_concurrency=1, limits={"b": {"max_concurrency": 2}, "*": {"weight": 2}})
    await site.caller("owner").v1(name)
    await agent.until(1)
    for namespace, count in (("a", 4), ("b", 3)):
        for number in range(count):
            assert (await site.caller(namespace, number % 2).v1(name)).status == 202
    queue = await site.queue(name)
    assert (queue["waiting"], queue["running"], queue["limits"]["max_concurrency"]) == (7, 1, 1)
    assert queue["oldest_waiting_ms"] >= max(one["next_waiting_ms"] for one in queue["namespaces"])
    depths = {one["namespace"]: one["waiting"] for one in queue["namespaces"]}
    assert depths == {"a": 4, "b": 3, "owner": 0}
    assert (queue["breaker"]["state"], [one["breaker"] for one in queue["instances"]]) == ("closed", ["closed"])
    owned = (await site.caller("owner", 1).get(f"/v1/endpoints/{name}")).json
    assert (owned["waiting"], owned["running"]) == (7, 1)
    for gateway in (0, 1):
        text = (await site.caller("owner", gateway).get("/metrics")).body.decode()
        assert samples(text, "mesh_endpoint_waiting", owned["id"]) == depths
        assert samples(text, "mesh_endpoint_running", owned["id"]) == {"a": 0, "b": 0, "owner": 1}
        assert samples(text, "mesh_endpoint_breaker", owned["id"]) == {"": 0}
        assert f'mesh_endpoint_info{{endpoint="{owned["id"]}",name="{name}",owner="owner"}} 1.0' in text
    open_ = (await Caller(site.gateways[0]).get("/metrics")).body.decode()
    assert f'mesh_endpoint_breaker{{endpoint="{owned["id"]}"}}' in open_
    assert "mesh_endpoint_info" not in open_, "names are for who may see them"
    said = json.loads(await asyncio.to_thread(command_line, site.gateways[1], "endpoint", "queue", name, "--json"))
    assert {one["namespace"]: one["waiting"] for one in said["namespaces"]} == depths
    assert "7, the oldest" in await asyncio.to_thread(command_line, site.gateways[1], "endpoint", "queue", name)
    seen = await site.queue(name, "b", 1)
    assert (seen["waiting"], [one["namespace"] for one in seen["namespaces"]]) == (7, ["b"])
    assert set(seen["limits"]["namespaces"]) == {"*", "b"}
    assert set((await site.caller("a").get(f"/v1/endpoints/{name}")).json["policy"]["limits"]) == {"*"}
    assert (await Caller(site.gateways[0]).get(f"/v1/endpoints/{name}/queue")).status == 401
    holder.free.set()
    await site.until_idle(name)


def quota(answer: Answer, namespace: str, limit: int, remaining: int) -> None:
    """The RateLimit headers of one answer."""
    key = b64encode(namespace.encode()).decode()
    assert answer["ratelimit-policy"] == f'"waiting";q={limit};qu="concurrent-requests";pk=:{key}:'
    assert answer["ratelimit"].startswith(f'"waiting";r={remaining};')


async def test_a_full_line_is_429_before_anything_is_kept(site: Site, agent: Actor) -> None:
    """P334: on both surfaces, with Retry-After and RateLimit; others have their own room."""
    holder = Holder(agent)
    name = await site.register(agent, max_concurrency=1, max_waiting=2, limits={"b": {"max_waiting": 1}})
    first = await site.caller("a").v1(name)
    quota(first, "a", 2, 2)
    key = {"idempotency-key": "kept"}
    kept = await site.caller("a").v1(name, key)
    quota(kept, "a", 2, 1)
    quota(await site.caller("a", 1).nexus(name, headers=[ASYNC]), "a", 2, 0)
    before = (await site.caller("a").get(f"/v1/operations?endpoint={name}")).json["items"]
    refused = await site.caller("a", 1).v1(name, {"idempotency-key": "new"})
    check_problem(refused, 429, "backlog_full")
    quota(refused, "a", 2, 0)
    assert 1 <= int(refused["retry-after"]) <= 60
    assert f"t={refused['retry-after']}" in refused["ratelimit"]
    refused = await site.caller("a").nexus(name, headers=[ASYNC])
    check_failure(refused, 429, "RESOURCE_EXHAUSTED")
    quota(refused, "a", 2, 0)
    assert int(refused["retry-after"]) >= 1
    again = await site.caller("a", 1).v1(name, key)
    assert (again.status, again.json["id"], again["idempotency-replayed"]) == (202, kept.json["id"], "true")
    assert (await site.caller("a").get(f"/v1/operations?endpoint={name}")).json["items"] == before
    quota(await site.caller("b").v1(name), "b", 1, 0)
    holder.free.set()
    await site.until_idle(name)
    assert (await site.caller("a").v1(name, {"idempotency-key": "new"})).status == 202


async def test_what_is_accepted_for_later_is_bounded_too(site: Site, agent: Actor) -> None:
    """P433: on both surfaces and in a batch; until its time, or its cancel, it takes up room."""
    name = await site.register(agent, max_delayed=2, limits={"b": {"max_delayed": 1}})
    kept = [(await site.caller("a").v1(name, delay_ms=3_600_000)).json["id"] for _ in range(2)]
    refused = await site.caller("a", 1).v1(name, delay_ms=3_600_000)
    check_problem(refused, 429, "delayed_full")
    assert (refused["retry-after"], refused["ratelimit"][:14]) == ("60", '"delayed";r=0;')
    failed = await site.caller("a").nexus(name, headers=[ASYNC, ("mesh-delay", "60m")])
    check_failure(failed, 429, "RESOURCE_EXHAUSTED")
    line = json.dumps({"endpoint": name, "service": "svc", "operation": "op", "delay_ms": 3_600_000}).encode()
    batch = await site.caller("a").post("/v1/operations/batch", line)
    assert (json.loads(batch.body)["status"], json.loads(batch.body)["problem"]["code"]) == (429, "delayed_full")
    assert (await site.caller("a").v1(name)).status == 202
    assert (await site.caller("b").v1(name, delay_ms=3_600_000)).status == 202
    one = await site.caller("b").v1(name, delay_ms=3_600_000)
    check_problem(one, 429, "delayed_full")
    told = [answer.json["detail"].partition(" accepted")[0] for answer in (refused, one)]
    assert told == ["2 operations of your namespace are", "1 operation of your namespace is"]
    assert (await site.caller("a").cancel(kept[0])).status == 202
    assert (await site.caller("a").v1(name, delay_ms=3_600_000)).status == 202


def start_by_client(gateway: Gateway, name: str, value: Any, priority: int) -> str:
    with mesh.SyncClient(gateway.url(), key=KEYS["a"]) as client:
        return client.start(name, "svc", "op", value, priority=priority).id


async def test_urgent_work_goes_first_among_its_own(site: Site, agent: Actor) -> None:
    """P332: `priority`, `Mesh-Priority`, --priority and the client's option; what is none changes nothing.

    Five levels over what was there before: a level is worth 10 s, which a busy machine takes for a command line.
    """
    holder = Holder(agent)
    name = await site.register(agent, max_concurrency=1)
    await site.caller("a").v1(name)
    await agent.until(1)
    plain = (await site.caller("a").v1(name)).json["id"]
    urgent = await site.caller("a").v1(name, priority=3)
    most = (await site.caller("a", 1).nexus(name, headers=[ASYNC, ("mesh-priority", "9")])).json["token"]
    arguments = ("call", name, "svc", "op", "--async", "--priority", "9", "--json")
    said = json.loads(await asyncio.to_thread(command_line, site.gateways[0], *arguments, namespace="a"))
    asked: list[tuple[Any, int]] = [(None, 8), (b"bytes go by the Nexus surface", 8)]
    first, second = [await asyncio.to_thread(start_by_client, site.gateways[1], name, *one) for one in asked]
    assert urgent.json["priority"] == 3
    check_problem(await site.caller("a").v1(name, priority=10), 422, "body_invalid")
    check_problem(await site.caller("a").v1(name, priority="9"), 422, "body_invalid")
    check_failure(await site.caller("a").nexus(name, headers={"mesh-priority": "10"}), 400, "BAD_REQUEST")
    holder.free.set()
    await site.until_idle(name)
    assert holder.operations[1:] == [most, said["id"], first, second, urgent.json["id"], plain]


async def test_new_work_is_refused_before_the_store_is_full(site: Site, agent: Actor) -> None:
    """P335: 503 with Retry-After; what was accepted ends, and repeats of it are answered."""
    holder = Holder(agent)
    name = await site.register(agent)
    key = {"idempotency-key": "before"}
    before = (await site.caller("a").v1(name, key)).json["id"]
    used = next(line for line in site.store.ask("INFO memory").decode().splitlines() if line.startswith("used_memory:"))
    assert site.store.ask(f"CONFIG SET maxmemory {int(used[12:]) * 110 // 100}").startswith(b"+OK")

    async def until_full(*, full: int) -> None:
        for gateway in (0, 1):
            await site.caller("a", gateway).until_gauge("mesh_store_nearly_full", full, 10)

    try:
        await until_full(full=1)
        for gateway in (0, 1):
            refused = await site.caller("a", gateway).v1(name)
            check_problem(refused, 503, "store_nearly_full")
            assert int(refused["retry-after"]) >= 1
        again = await site.caller("a", 1).v1(name, key)
        assert (again.status, again.json["id"]) == (202, before)
        holder.free.set()
        assert (await site.caller("a").result(before)).status == 200
    finally:
        assert site.store.ask("CONFIG SET maxmemory 0").startswith(b"+OK")
    await until_full(full=0)
    assert (await site.caller("a").v1(name)).status == 202


async def test_a_spike_of_one_team_leaves_the_others_their_service(site: Site, agent: Actor) -> None:
    """P330, P95, P334: never more at once than the limit, nothing accepted is lost, the small team hardly waits."""
    limit, loads = 4, {"a": 320, "b": 60, "c": 20}
    in_flight = most = 0
    begun_s: dict[str, float] = {}

    async def script(call: Call, _writer: object) -> Reply:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        begun_s.setdefault(call.operation, monotonic_s())
        await sleep(0.02)
        in_flight -= 1
        return as_json(call.operation)

    agent.script = script
    name = await site.register(agent, max_concurrency=limit, max_waiting=300)
    order = [one for number in range(20) for one in ("a",) * 16 + ("b",) * 3 + ("c",)]
    accepted: dict[str, tuple[str, float]] = {}
    refused: list[Answer] = []
    senders = asyncio.Semaphore(16)

    async def send(number: int, namespace: str) -> None:
        async with senders:
            sent_s = monotonic_s()
            answer = await site.caller(namespace, number % 2).v1(name)
        if answer.status == 202:
            accepted[answer.json["id"]] = (namespace, sent_s)
        else:
            refused.append(answer)

    await asyncio.gather(*[send(number, namespace) for number, namespace in enumerate(order)])
    assert Counter(order) == loads
    assert {answer.status for answer in refused} <= {429}
    assert all(int(answer["retry-after"]) >= 1 for answer in refused)
    assert len(accepted) >= 0.95 * len(order)
    for one, (namespace, _) in accepted.items():
        result = await site.caller(namespace).result(one, "30")
        assert (result.status, result.json) == (200, one)
    assert most <= limit
    assert Counter(call.operation for call in agent.calls) == Counter(dict.fromkeys(accepted, 1))
    waits = {
        name: sorted(begun_s[one] - sent_s for one, (namespace, sent_s) in accepted.items() if namespace == name)
        for name in loads
    }
    p95 = {name: times[int(len(times) * 0.95) - 1] for name, times in waits.items()}
    assert p95["c"] < 3
    assert p95["c"] < p95["a"] / 2, p95
