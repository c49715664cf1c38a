"""Scenario 2.6 of features.md on `ctx.gather`: twenty sources of mixed quality, twelve answers in 800 ms, fifty times.

Twelve sources are quick, four take three seconds, three fail three times out of five, one is dead. They are plain HTTP
handlers, each its own endpoint; the retriever is a durable handler.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

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


class Sources:
    """The nineteen that live, behind one server, and the one that does not, behind a port of its own."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.canceled = Counter[str]()
        self._dice = random.Random(26)
        self.app = Scripted(self._answer)
        self.dead = socket.socket()
        self.dead.bind(("127.0.0.1", 0))
        """Nobody listens there, and nobody else can: other tests look for free ports too."""
        self.dead_port: int = self.dead.getsockname()[1]

    async def _answer(self, request: Request) -> Response:
        name = request.path.split("/")[1]
        if "/cancel" in request.path:
            self.canceled[name] += 1
            return answer({}, 202)
        self.asked[name] += 1
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
    found.dead.close()


@pytest.fixture(scope="module")
def base(dev: Dev, sources: Sources) -> Iterator[str]:
    """Everything registered; the gateway's URL."""
    with ExitStack() as stack:
        url = stack.enter_context(serving(sources.app))
        for name in SOURCES:
            at = f"http://127.0.0.1:{sources.dead_port}/{DEAD}" if name == DEAD else f"{url}/{name}"
            policy = {"retry": {"max_attempts": 1}, "breaker": {"failures": 3, "open_ms": OPEN_MS}}
            reply = httpx.put(
                f"{dev.url}/v1/endpoints/{name}", json={"target": {"kind": "http", "url": at}, "policy": policy},
                trust_env=False,
            )  # fmt: skip
            assert reply.status_code == 201, reply.text
        port = lasting_port()
        agent = Agent("retriever", [retrieve], gateway=dev.url, url=f"http://127.0.0.1:{port}")
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
    assert set(dead) <= {"late", "skipped"}
    # Now and then a question is the probe of the open breaker, on a slow machine often.
    assert dead.count("skipped") >= 10, f"known to be dead, it is not waited for: {dead}"
    assert sources.asked[DEAD] == 0
    assert all(sources.asked[name] == 50 for name in QUICK)


def test_the_late_are_canceled(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    ask(client, "canceled")
    listing = httpx.get(f"{base}/v1/operations", params={"endpoint": SLOW[0], "limit": 5}, trust_env=False).json()

    def over() -> bool:
        record = httpx.get(f"{base}/v1/operations/{listing['items'][0]['id']}", trust_env=False).json()
        return record["state"] in ("canceled", "succeeded") and record.get("cancel_requested", True)

    until(over, 10)


def test_a_repeat_within_the_window_asks_nobody(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    """The caller's key names the question: while its operation is kept, the answer is the one that is there."""
    _, first = ask(client, "cached")
    until(lambda: not [name for name in QUICK if sources.asked[name] < 1], 5)
    asked = sources.asked.copy()
    seconds, second = ask(client, "cached")
    assert second == first
    assert sources.asked == asked
    assert seconds < 3, "the sources that are slow take as long"


def test_a_source_that_comes_back_is_asked_again(base: str, client: mesh.SyncClient, sources: Sources) -> None:
    sources.dead.close()
    with serving(Scripted(lambda _: answer({"source": DEAD})), port=sources.dead_port):
        socket.create_connection(("127.0.0.1", sources.dead_port)).close()

        def asked() -> bool:
            pause(OPEN_MS / 2000)
            return ask(client, f"revived {monotonic_s()}")[1]["outcomes"][DEAD] == "succeeded"

        until(asked, 30)
