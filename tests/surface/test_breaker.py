"""The breaker of an endpoint: what opens it, what it is tried with, and what closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.clock import from_rfc3339, monotonic_s
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error
from tests.surface.gateways import Caller

Script = Callable[[Call, asyncio.StreamWriter], Awaitable[Reply | bytes]]
RETRY = {"initial_ms": 10, "max_ms": 20, "jitter": 0}
AWAY = Reply(503, b"no healthy upstream", {"content-type": "text/plain"})


def bad_is(answer: Reply | bytes) -> Script:
    """The operation `bad` is answered so, all others well."""

    async def script(call: Call, _writer: asyncio.StreamWriter) -> Reply | bytes:
        return answer if call.path == "/svc/bad" else as_json("well")

    return script


async def breaker(caller: Caller, name: str) -> dict[str, Any]:
    return (await caller.get(f"/v1/endpoints/{name}")).json["breaker"]


async def keep(caller: Caller, name: str, agent: Actor, **more: Any) -> int:
    """Register the agent as an instance, or keep up its lease."""
    spec = {"url": agent.url, "ttl_ms": 60_000, **more}
    return (await caller.ask("PUT", f"/v1/endpoints/{name}/instances/one", (), spec)).status


class TestWhatCounts:
    async def test_a_handler_that_raises_starves_nobody(self, caller: Caller, agent: Actor) -> None:
        """P115: six operations whose handler raises, with the policy as it is by default; the others go on at once."""
        agent.script = bad_is(handler_error(500, "INTERNAL", "division by zero"))
        name = await caller.register(agent.url)
        bad = [await caller.begin(name, operation="bad") for _ in range(6)]
        await agent.until(6)
        for one in bad:
            await caller.until(one, state="backing_off")
        begun = monotonic_s()
        for _ in range(5):
            answer = await caller.nexus(name, operation="good")
            assert (answer.status, answer.json) == (200, "well")
        assert monotonic_s() - begun < 15
        found = await breaker(caller, name)
        assert (found["state"], found["failures"], found["failures_max"], found["since"]) == ("closed", 0, 5, None)
        for one in bad:
            await caller.cancel(one)

    @pytest.mark.parametrize(
        "answer",
        [
            handler_error(503, "UNAVAILABLE"),
            handler_error(520, "UPSTREAM_TIMEOUT"),
            handler_error(429, "RESOURCE_EXHAUSTED"),
            handler_error(500, "INTERNAL"),
            Reply(503, b"later", {"nexus-request-retryable": "true"}),
            Reply(500, b"Internal Server Error"),
            Reply(418),
            Reply(301, headers={"location": "http://127.0.0.1:1/"}),
            Reply(424),
            as_json({"token": "", "state": "running"}, 201),
        ],
    )
    async def test_any_word_of_the_agent_is_reach(self, caller: Caller, agent: Actor, answer: Reply) -> None:
        """P115: an error worth repeating, and an answer that is none, still come from an agent that is there."""
        agent.script = bad_is(answer)
        name = await caller.register(agent.url, policy={"retry": RETRY, "breaker": {"failures": 2, "open_ms": 60_000}})
        bad = await caller.begin(name, operation="bad")
        await agent.until(5)
        assert (await breaker(caller, name))["state"] == "closed"
        assert (await caller.nexus(name)).status == 200
        await caller.cancel(bad)

    @pytest.mark.parametrize(
        "answer",
        [
            AWAY,
            Reply(502, b"<html>Bad Gateway</html>", {"content-type": "text/html"}),
            as_json({"message": "name resolution failed"}, 503),
            Reply(504),
            Reply(520),
            Reply(*(503, as_json({"message": "", "metadata": {}}).body, {"mesh-failure-source": "gateway"})),
            b"",
            b"SSH-2.0-none\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\ncut",
        ],
    )
    async def test_silence_and_proxies_are_not(self, caller: Caller, agent: Actor, answer: Reply | bytes) -> None:
        """P115, P96: no answer, no HTTP, or the word of a proxy whose agent is away. P118, P336: it is seen."""
        agent.script = bad_is(answer)
        name = await caller.register(agent.url, policy={"retry": RETRY, "breaker": {"failures": 2, "open_ms": 60_000}})
        bad = await caller.begin(name, operation="bad")
        await caller.until(bad, blocked="breaker")
        assert len(agent.calls) == 2
        found = await breaker(caller, name)
        assert (found["state"], found["failures"], found["open_ms"], found["open_ms_max"]) == (
            "open",
            2,
            60_000,
            60_000,
        )
        assert found["since"] < found["retry_at"]
        queue = (await caller.get(f"/v1/endpoints/{name}/queue")).json
        # Two looks: `retry_at` is reckoned in the store's time, as the last beat told it: late on a busy machine.
        assert {**queue["breaker"], "retry_at": ""} == {"state": "open", "failures": 2, "retry_at": ""}
        assert abs(from_rfc3339(queue["breaker"]["retry_at"]) - from_rfc3339(found["retry_at"])) < 20_000
        assert (queue["waiting"], queue["oldest_waiting_ms"] > 0) == (1, True)
        one = (await caller.get(f"/v1/endpoints/{name}")).json["id"]
        assert await caller.gauge(f'mesh_endpoint_breaker{{endpoint="{one}"}}') == 2
        await caller.cancel(bad)


class TestHalfOpen:
    async def test_one_bad_operation_does_not_hold_it_open(
        self, caller: Caller, actor: Callable[[], Awaitable[Actor]]
    ) -> None:
        """P116: the probe is what failed least, not the oldest in line; the rest follows as soon as it succeeded."""
        probes: list[str] = []
        for open_ms in (1_000, 5_000, 15_000):  # on a busy machine it may be tried before what is good is in line
            agent = await actor()
            agent.script = bad_is(AWAY)
            policy = {"retry": RETRY | {"max_attempts": 100}, "breaker": {"failures": 3, "open_ms": open_ms}}
            name = await caller.register(agent.url, policy=policy)
            bad = [await caller.begin(name, operation="bad") for _ in range(3)]
            await agent.until(3)
            for one in bad:
                await caller.until(one, blocked="breaker")
            good = [await caller.begin(name, operation="good") for _ in range(3)]
            for one in good:
                await caller.until(one, state="succeeded", within_s=60)
            for one in bad:
                await caller.cancel(one)
            probes.append(agent.calls[3].path)
            if probes[-1] == "/svc/good":
                return
        raise AssertionError(probes)

    async def test_what_is_due_again_does_not_take_the_probe(self, caller: Caller, agent: Actor) -> None:
        """P116: its back-off ends while the breaker is half open; it goes back in line."""
        agent.script = bad_is(AWAY)
        slow = {"initial_ms": 1_200, "max_ms": 1_200, "jitter": 0, "max_attempts": 100}
        name = await caller.register(agent.url, policy={"retry": slow, "breaker": {"failures": 1, "open_ms": 1_000}})
        bad = await caller.begin(name, operation="bad")
        await agent.until(1)
        # Half open from 1.0 s on, with nothing to try it with until `bad` is due again at 1.2 s.
        await agent.until(2)
        good = await caller.begin(name, operation="good")
        await caller.until(good, state="succeeded")
        await caller.cancel(bad)


class TestArrivals:
    async def test_a_process_that_starts_closes_it(self, caller: Caller, agent: Actor) -> None:
        """P117: also under the name and address of one that was killed a moment ago; a heartbeat does not."""
        agent.script = bad_is(b"")
        name = await caller.register(None, policy={"retry": RETRY, "breaker": {"failures": 2, "open_ms": 60_000}})
        assert await keep(caller, name, agent, fresh=True) == 201
        bad = await caller.begin(name, operation="bad")
        await caller.until(bad, blocked="breaker")
        good = await caller.begin(name, operation="good")
        await caller.until(good, blocked="breaker")
        assert await keep(caller, name, agent) == 200
        assert (await breaker(caller, name))["state"] == "open"
        agent.script = bad_is(as_json("well"))
        assert await keep(caller, name, agent, fresh=True) == 200
        await caller.until(good, state="succeeded")
        await caller.until(bad, state="succeeded")
        found = await breaker(caller, name)
        assert (found["state"], found["failures"], found["open_ms"], "retry_at" in found) == ("closed", 0, 0, False)
        assert found["since"]

    async def test_another_instance_closes_it(self, caller: Caller, agent: Actor) -> None:
        """P117."""
        agent.script = bad_is(b"")
        name = await caller.register(None, policy={"retry": RETRY, "breaker": {"failures": 1, "open_ms": 60_000}})
        await keep(caller, name, agent)
        bad = await caller.begin(name, operation="bad")
        await caller.until(bad, blocked="breaker")
        good = await caller.begin(name, operation="good")
        await caller.until(good, blocked="breaker")
        agent.script = bad_is(as_json("well"))
        spec = {"url": agent.url, "ttl_ms": 60_000}
        assert (await caller.ask("PUT", f"/v1/endpoints/{name}/instances/two", (), spec)).status == 201
        await caller.until(good, state="succeeded")
