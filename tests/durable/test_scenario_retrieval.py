"""Scenario 2.6 of features.md on `ctx.gather`: twenty sources of mixed quality, twelve answers in 800 ms, fifty times.

Twelve sources are quick, four take three seconds, three fail three times out of five, one is dead: only the proxy
before it answers. They are plain HTTP handlers, each its own endpoint; the retriever is a durable handler.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import httpx
import pytest

import mesh
from mesh.agent import Agent
from mesh.clock import monotonic_s, pause, sleep
from tests.agents.serving import Request, Response, Scripted, answer, serving, until
from tests.agents.test_real_gateway import Dev
from tests.ports import lasting_port

QUICK = [f"quick-{n:02}" for n in range(12)]
SLOW = [f"slow-{n}" for n in range(4)]
FAILING = [f"failing-{n}" for n in range(3)]
DEAD = "dead-source"
GONE = "gone-source"
"""Its port refuses connections; it is none of the twenty."""
SOURCES = [*QUICK, *SLOW, *FAILING, DEAD]
OPEN_MS = 1000


@mesh.durable
async def retrieve(ctx: mesh.Context, query: str) -> dict[str, Any]:
    """Ask all sources, take the first twelve answers."""
    gathered = await ctx.gather(
        {name: ctx.call(name, "Source", "ask", query, name=name) for name in SOURCES}, quorum=12, deadline_ms=800
    )
    return {
        "answers": len(gathered.results),
        "reached": gathered.reached,
        "outcomes": {name: source.state for name, source in gathered.items()},
        "story": gathered.story(),
    }


@mesh.durable
async def retrieve_slow(ctx: mesh.Context, late: Literal["cancel", "keep"]) -> dict[str, Any]:
    """The same without those that fail; what is late is waited for where it is kept."""
    gathered = await ctx.gather(
        {name: ctx.call(name, "Source", "ask", late, name=name) for name in [*QUICK, *SLOW]},
        quorum=12, deadline_ms=800, late=late,
    )  # fmt: skip
    assert {gathered[name].state for name in SLOW} == {"late"}
    if late == "cancel":
        await ctx.sleep(3600)
    return {name: await gathered.late(name) for name in SLOW}


@mesh.durable
async def reach(ctx: mesh.Context, _: str) -> str:
    """What becomes of a source that nobody can connect to."""
    gathered = await ctx.gather({GONE: ctx.call(GONE, "Source", "ask")}, deadline_ms=800)
    return gathered[GONE].state


class Sources:
    """The nineteen that live and the proxy of the one that does not, behind one server."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.canceled = Counter[str]()
        self._dice = random.Random(26)
        self.app = Scripted(self._answer)
        self.dead = True
        self.gone = socket.socket()
        self.gone.bind(("127.0.0.1", 0))
        """Nobody listens there, and nobody else can: other tests look for free ports too."""
        self.gone_port: int = self.gone.getsockname()[1]

    async def _answer(self, request: Request) -> Response:
        name = request.path.split("/")[1]
        if "/cancel" in request.path:
            self.canceled[name] += 1
            return answer({}, 202)
        self.asked[name] += 1
        if name == DEAD and self.dead:
            return Response(502, b"<html>Bad Gateway</html>", {"content-type": "text/html"})
        if name in SLOW:
            await sleep(3)
        if name in FAILING and self._dice.random() < 0.6:
            failure = {
                "message": "no luck",
                "metadata": {"type": "nexus.HandlerError"},
                "details": {"type": "INTERNAL"},
            }
            return answer(failure, 500)
        return answer({"source": name})


@pytest.fixture(scope="module")
def sources() -> Iterator[Sources]:
    found = Sources()
    yield found
    found.gone.close()


@pytest.fixture(scope="module")
def base(dev: Dev, sources: Sources) -> Iterator[str]:
    """Everything registered; the gateway's URL."""
    with ExitStack() as stack:
        url = stack.enter_context(serving(sources.app))
        for name in [*SOURCES, GONE]:
            at = f"http://127.0.0.1:{sources.gone_port}" if name == GONE else f"{url}/{name}"
            policy = {"retry": {"max_attempts": 1}, "breaker": {"failures": 3, "open_ms": OPEN_MS}}
            reply = httpx.put(
                f"{dev.url}/v1/endpoints/{name}", json={"target": {"kind": "http", "url": at}, "policy": policy},
                trust_env=False,
            )  # fmt: skip
            assert reply.status_code == 201, reply.text
        port = lasting_port()
        agent = Agent("retriever", [retrieve, retrieve_slow, reach], gateway=dev.url, url=f"http://127.0.0.1:{port}")
        stack.enter_context(serving(agent, port=port))
        until(lambda: agent._registration is not None and agent._registration.known.is_set(), 10)
        yield dev.url


def ask(client: mesh.SyncClient, query: str) -> tuple[float, dict[str, Any]]:
    began_s = monotonic_s()
    key = query.replace(" ", "-")
    result = client.call("retriever", "retriever", "retrieve", query, idempotency_key=key, timeout_s=30)
    return monotonic_s() - began_s, result


@pytest.mark.timeout(180)
def test_fifty_gathers(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    taken: list[float] = []
    dead: list[str] = []
    reached = 0
    for number in range(50):
        seconds, result = ask(client, f"question {number}")
        taken.append(seconds)
        outcomes = result["outcomes"]
        assert set(outcomes) == set(SOURCES), "each answer states the outcome of all twenty"
        reached += result["reached"]
        assert all(outcomes[name] in ("late", "skipped") for name in SLOW), outcomes
        dead.append(outcomes[DEAD])
    assert reached >= 48, "twelve of them answer in time"
    assert sorted(taken)[47] < 1.0, f"p95 of {sorted(taken)[-5:]}"
    assert set(dead) <= {"failed", "late", "skipped"}
    # Now and then a question is the probe of the open breaker, on a slow machine often.
    assert dead.count("skipped") >= 10, f"known to be dead, it is not waited for: {dead}"
    assert breaker(base) in ("open", "half_open")
    assert 3 <= sources.asked[DEAD] <= 20, "enough to know it, and a probe now and then"
    assert all(sources.asked[name] == 50 for name in QUICK)


def test_the_late_are_canceled(base: str, client: mesh.SyncClient) -> None:
    """By the gather: its handler goes on, so that no parent's end cancels them."""
    handle = client.start("retriever", "retriever", "retrieve_slow", "cancel")
    until(lambda: all(child.get("cancel_requested") for child in slow_children(base, handle.id)), 20)
    assert handle.get()["state"] == "started"
    handle.cancel()


def test_the_late_are_kept(base: str, client: mesh.SyncClient) -> None:
    """By option: they answer in their time, and the handler has it."""
    handle = client.start("retriever", "retriever", "retrieve_slow", "keep")
    assert handle.result(timeout_s=30) == {name: {"source": name} for name in SLOW}
    assert not any(child.get("cancel_requested") for child in slow_children(base, handle.id))


def slow_children(base: str, parent: str) -> list[dict[str, Any]]:
    """The calls of the slow sources; none before all of them are there."""
    params = {"parent": parent, "limit": 50}
    found = httpx.get(f"{base}/v1/operations", params=params, trust_env=False).json()["items"]
    slow = [child for child in found if child["endpoint"] in SLOW]
    return slow if len(slow) == len(SLOW) else [{}]


def breaker(base: str) -> str:
    state: str = httpx.get(f"{base}/v1/endpoints/{DEAD}", trust_env=False).json()["breaker"]["state"]
    return state


def test_a_repeat_within_the_window_asks_nobody(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    """The caller's key names the question: while its operation is kept, the answer is the one that is there."""
    _, first = ask(client, "cached")
    until(lambda: not [name for name in QUICK if sources.asked[name] < 1], 5)
    asked = sources.asked.copy()
    seconds, second = ask(client, "cached")
    assert second == first
    assert sources.asked == asked
    assert seconds < 3, "the sources that are slow take as long"


def test_nobody_waits_for_who_refuses_connections(base: str, client: mesh.SyncClient) -> None:
    until(lambda: client.call("retriever", "retriever", "reach", "", timeout_s=30) == "skipped", 30)


def test_a_source_that_comes_back_is_asked_again(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    """Some gather's call is the probe of the half-open breaker, and closes it."""
    before = sources.asked[DEAD]
    sources.dead = False

    def closed() -> bool:
        pause(OPEN_MS / 2000)
        ask(client, f"revived {monotonic_s()}")
        return breaker(base) == "closed"

    until(closed, 90)
    assert sources.asked[DEAD] > before
    until(lambda: ask(client, f"again {monotonic_s()}")[1]["outcomes"][DEAD] == "succeeded", 30)
