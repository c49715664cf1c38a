"""Two gateways on one store: what is due is done by one of them, once, also when the other is killed or stands still.

P303, P371; P475, P476.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.clock import from_rfc3339, monotonic_s, sleep
from tests.servers import RawServer
from tests.surface.actors import Actor, Call, Reply, started
from tests.surface.gateways import ASYNC, KEYLESS, Caller, Gateway, fresh
from tests.surface.pollers import Poller, pull_endpoint, verb
from tests.surface.wire import Answer

EVERY_MS = 500
EVERY_SECOND = "* * * * * *"
WITHIN_S = 40.0
DEAD_S = 3.0
"""A gateway that is silent for so long counts as dead (P114)."""


class Work:
    """A probe, a canary and a schedule, asked for at `one`, and how often each came."""

    def __init__(self, one: Caller, agent: Actor) -> None:
        self.caller, self.agent = one, agent
        self.probed, self.canary, self.schedule = fresh("probed"), fresh("canary"), fresh("clock")

    async def begin(self) -> None:
        quiet = {"every_ms": 0}
        probe = {"path": f"/{self.probed}", "every_ms": EVERY_MS}
        canary = {"service": "svc", "operation": "op", "every_ms": EVERY_MS}
        for name, policy in (
            (self.probed, {"probe": probe}),
            (self.canary, {"probe": quiet, "canaries": [canary]}),
        ):
            target = {"kind": "http", "url": self.agent.url}
            answer = await self.caller.ask("PUT", f"/v1/endpoints/{name}", (), {"target": target, "policy": policy})
            assert answer.status == 201, answer
        operation = {"endpoint": self.canary, "service": "svc", "operation": "by-the-clock"}
        body = {"cron": EVERY_SECOND, "overlap": "allow", "operation": operation}
        assert (await self.caller.ask("PUT", f"/v1/schedules/{self.schedule}", (), body)).status == 201

    async def probes(self) -> list[float]:
        """When they came, in seconds."""
        return [call.at_s for call in self.agent.calls if call.path == f"/{self.probed}"]

    async def canaries(self) -> list[float]:
        page = (await self.caller.get(f"/v1/operations?canary=true&endpoint={self.canary}&limit=200")).json
        return sorted(from_rfc3339(one["created_at"]) / 1000 for one in page["items"])

    async def runs(self) -> list[int]:
        """Their times, in seconds."""
        page = (await self.caller.get(f"/v1/schedules/{self.schedule}/runs?limit=200")).json
        return sorted(from_rfc3339(one["scheduled_at"]) // 1_000 for one in page["items"])

    async def operations(self) -> int:
        target = f"/v1/operations?label.mesh.schedule={self.schedule}&limit=200"
        return len((await self.caller.get(target)).json["items"])


async def until(look: Callable[[], Any], count: int) -> list[Any]:
    end_s = monotonic_s() + WITHIN_S
    while len(found := await look()) < count:
        assert monotonic_s() < end_s, found
        await sleep(0.05)
    return found


def not_faster_than_due(times: list[float], began_s: float) -> None:
    """Of two that ran each, the n-th would be there in half of the time; being late moves none forward."""
    for number, at_s in enumerate(times):
        assert at_s - began_s >= number * EVERY_MS / 1000, (number, [round(one - began_s, 3) for one in times])


@pytest.fixture
def server(start_server: Callable[..., RawServer]) -> RawServer:
    """The store of both."""
    return start_server()


@pytest.fixture
def pair(server: RawServer, own_gateway: Callable[..., Gateway]) -> tuple[Gateway, Gateway]:
    """Two gateways on it."""
    settings = KEYLESS | {"store": {"url": f"unix://{server.address.path}"}}
    return own_gateway(settings, "one"), own_gateway(settings, "two")


async def test_what_is_due_is_done_once(pair: tuple[Gateway, Gateway], agent: Actor) -> None:
    """P303, P371: a probe, a canary and the times of a schedule; then one of the two is killed, and all goes on."""
    first, second = pair
    work, began_s = Work(Caller(first), agent), monotonic_s()
    await work.begin()
    born_s = from_rfc3339((await work.caller.get(f"/v1/endpoints/{work.canary}")).json["created_at"]) / 1000

    async def done(more: int) -> None:
        looks = ((work.probes, began_s), (work.canaries, born_s))
        counts = [len(await look()) + more for look, _ in looks]
        for (look, begin_s), count in zip(looks, counts, strict=True):
            not_faster_than_due(await until(look, count), begin_s)

    await done(6)
    await until(work.runs, 3)
    await asyncio.to_thread(first.kill)
    work.caller = Caller(second)
    await done(3)
    await until(work.runs, len(await work.runs()) + 2)
    paused = await work.caller.post(f"/v1/schedules/{work.schedule}/pause")
    assert paused.json["paused"] is True
    runs = await work.runs()
    assert runs == list(range(runs[0], runs[-1] + 1)), "each second once, none left out"
    assert await work.operations() == len(runs) == paused.json["counts"]["started"]


@asynccontextmanager
async def leased_while_frozen(frozen: Gateway, server: RawServer, endpoint: str) -> AsyncIterator[asyncio.Task[Answer]]:
    """Inside, the store has leased a start to `frozen`, which stands still and has not read so; its caller waits."""
    assert frozen.process is not None
    server.signal(signal.SIGSTOP)
    waiting = asyncio.create_task(Caller(frozen).nexus(endpoint, headers=[ASYNC]))
    for _ in range(3):  # answered behind the start, turns after it: the start has left for the store
        await Caller(frozen).get("/healthz")
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        server.signal(signal.SIGCONT)
        yield waiting
    finally:
        frozen.process.send_signal(signal.SIGCONT)


async def test_a_gateway_that_stood_still_sends_nothing_that_another_has(
    pair: tuple[Gateway, Gateway], server: RawServer, agent: Actor
) -> None:
    """P475: frozen with the lease of a start in its socket buffer, it asks before it sends; another has the work."""
    frozen, other = pair
    agent.script = begun
    endpoint = await Caller(other).register(agent.url)
    assert (await Caller(frozen).nexus(endpoint)).status == 201
    async with leased_while_frozen(frozen, server, endpoint) as waiting:
        await until(lambda: called(agent), 2)
    assert (await waiting).status == 201
    assert (await Caller(frozen).nexus(endpoint)).status == 201
    await until(lambda: called(agent), 3)
    taken = agent.starts[1]
    assert [call.attempt for call in agent.starts if call.operation == taken.operation] == [taken.attempt]
    assert "this gateway stood still" in frozen.log.read_text()
    events = (await Caller(frozen).get(f"/v1/operations/{taken.operation}/events")).json["items"]
    assert "attempt_lost" in [event["type"] for event in events], "the lease was the frozen one's"


async def test_a_gateway_that_stood_still_hands_out_nothing_that_another_has(
    pair: tuple[Gateway, Gateway], server: RawServer
) -> None:
    """P475: frozen with the lease of an agent that waits at it, which ended meanwhile; another agent has the work."""
    frozen, other = pair
    endpoint = await pull_endpoint(Caller(other))
    here, there = Poller(Caller(frozen), endpoint), Poller(Caller(other), endpoint)
    async with here.waiting(lease_ms=1_000, wait_ms=15_000) as poll:
        async with leased_while_frozen(frozen, server, endpoint) as waiting:
            task = await there.task(lease_ms=10_000)
        assert task["attempt"] == 2, "the first was leased to the agent at the frozen gateway"
        assert (await waiting).json["token"] == task["operation_id"]
        assert (await verb(Caller(other), "complete", task["task_token"])).status == 200
        assert (await poll)["tasks"] == []


async def beat(caller: Caller, call: Call, lease_ms: int) -> str:
    task = {"token": call.completion_token, "lease_ms": lease_ms}
    return (await caller.post("/v1/tasks/heartbeat", {"tasks": [task]})).json["tasks"][0]["status"]


@asynccontextmanager
async def unanswered(first: Gateway, second: Gateway, agent: Actor, lease_ms: int) -> AsyncIterator[tuple[str, Call]]:
    """Inside, an agent that has not answered has beaten at `second`; `first`, which sent it the start, is dead."""
    agent.script = silent
    operation = await Caller(first).begin(await Caller(second).register(agent.url))
    call = (await until(lambda: called(agent), 1))[0]
    assert await beat(Caller(second), call, lease_ms) == "ok"
    await asyncio.to_thread(first.kill)
    agent.script = begun
    yield operation, call


async def test_who_was_told_that_it_has_the_work_keeps_it(pair: tuple[Gateway, Gateway], agent: Actor) -> None:
    """P476: the gateway died before it booked an answer; nobody else gets what the agent beats for, which completes."""
    async with unanswered(*pair, agent, 2_000) as (operation, call):
        other, end_s = Caller(pair[1]), monotonic_s() + 2 * DEAD_S
        while monotonic_s() < end_s:
            assert await beat(other, call, 2_000) == "ok"
            await sleep(0.2)
        assert [one.attempt for one in agent.starts] == [1]
        assert (await other.post(f"/v1/operations/{operation}/cancel")).status == 202
        assert await beat(other, call, 2_000) == "cancel", "without a token of its own it hears so here"
        assert (await call.complete(body=b'"kept"', port=pair[1].port)).status == 200
        assert (await other.result(operation)).body == b'"kept"'


async def test_who_is_silent_then_loses_it(pair: tuple[Gateway, Gateway], agent: Actor) -> None:
    """P476, P55: when the lease of its last heartbeat is over, the next attempt is sent; late words are refused."""
    async with unanswered(*pair, agent, 5_000) as (operation, call):
        beaten_s = monotonic_s()
        second = (await until(lambda: called(agent), 2))[1]
        assert (second.operation, second.attempt) == (operation, 2)
        assert second.at_s - beaten_s > 4.0, "not before the lease that it was told of"
        other = Caller(pair[1])
        assert await beat(other, call, 5_000) == "lost"
        lost = next(one for one in await other.events(operation) if one["type"] == "attempt_lost")
        assert (lost["reason"], lost["attempt"]) == ("heartbeat", 1)


async def silent(_call: Call, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def begun(_call: Call, _writer: asyncio.StreamWriter) -> Reply:
    return started()


async def called(agent: Actor) -> list[Call]:
    return agent.starts
