"""P185: JSON that takes long to read holds up nobody but its sender."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mesh.clock import monotonic_s
from tests.surface.actors import Actor, Reply, started
from tests.surface.checks import check_problem
from tests.surface.gateways import ASYNC, Caller, token_for
from tests.surface.wire import Answer, ask

TOWER = b"[" * 150 + b"]" * 150


def towers(size: int) -> bytes:
    """The shape that takes longest to read: up to half a second for each MiB."""
    return b"[" + b",".join([TOWER] * (size // len(TOWER))) + b"]"


TOWERS = towers(2_000_000)
JSON = [("content-type", "application/json")]


def body(endpoint: str, value: bytes = TOWERS) -> bytes:
    return b'{"endpoint":"%b","service":"svc","operation":"op","input":%b}' % (endpoint.encode(), value)


async def stalled(caller: Caller, request: Coroutine[Any, Any, Answer]) -> tuple[Answer, float, float]:
    """The answer, how long it took, and the longest that somebody else waited for an answer meanwhile, in seconds."""
    await caller.get("/healthz")
    begin_s = monotonic_s()
    asked = asyncio.create_task(request)
    longest_s = 0.0
    while not asked.done():
        at_s = monotonic_s()
        await caller.get("/healthz")
        longest_s = max(longest_s, monotonic_s() - at_s)
    return await asked, monotonic_s() - begin_s, longest_s


class TestStart:
    @pytest.mark.parametrize("sound", [True, False])
    async def test_others_are_served_meanwhile(self, caller: Caller, agent: Actor, sound: bool) -> None:
        """Read where requests are served, it would stall them for nearly as long as it takes itself."""
        agent.replies(started())
        name = await caller.register(agent.url)
        sent = body(name, TOWERS if sound else TOWERS[:-1] + b",NaN]")
        tries: list[float] = []
        for _ in range(2):
            answer, took_s, stall_s = await stalled(caller, caller.post("/v1/operations", sent, [ASYNC]))
            if sound:
                assert answer.status == 202, answer
            else:
                check_problem(answer, 400, "json_invalid")
                assert "NaN" in answer.json["detail"]
            tries.append(stall_s / took_s)
        assert min(tries) < 0.6, tries
        if sound:
            assert len((await agent.until(2)).body) == len(TOWERS)
        else:
            assert not agent.calls

    async def test_more_than_can_wait_are_sent_away(self, caller: Caller, agent: Actor) -> None:
        name = await caller.register(agent.url)
        bad = body(name, towers(1_000_000)[:-1])
        answers = await asyncio.gather(*[caller.post("/v1/operations", bad) for _ in range(20)])
        busy = [one for one in answers if one.status == 429]
        assert 0 < len(busy) < 20
        for one in answers:
            check_problem(one, one.status, "checks_busy" if one in busy else "json_invalid")
        assert all(one.get("retry-after") for one in busy)


class TestTasks:
    async def test_an_entry_of_many_values_is_kept(self, caller: Caller, agent: Actor) -> None:
        agent.replies(started(headers=[("mesh-lease-ms", "30000")]))
        await caller.begin(await caller.register(agent.url))
        said = b'{"at":0,"entries":[{"kind":"step","result":%b}]}' % towers(1_000_000)
        token = (await agent.until(1)).completion_token
        answer = await ask(caller.gateway.port, "POST", "/v1/tasks/journal", [("mesh-task-token", token), *JSON], said)
        assert (answer.status, answer.json["length"]) == (200, 1), answer

    async def test_who_holds_no_task_is_not_read_for(self, caller: Caller) -> None:
        """The work would be anybody's to cause: the token is all the proof there is."""
        said = b'{"tasks":[{"token":"m1.forged","at":0,"entries":[{"kind":"a","a":1,"a":%b}]}]}' % towers(1_000_000)
        answer = await ask(caller.gateway.port, "POST", "/v1/tasks/journal", JSON, said)
        assert answer.json["tasks"] == [{"status": "invalid", "length": 0}], "a duplicate key, which nobody looked for"


class TestFailures:
    async def test_a_failure_of_very_many_values_is_refused(self, caller: Caller, agent: Actor) -> None:
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        said = b'{"message":"no","details":%b}' % TOWERS
        headers = [("token", token_for(operation)), ("nexus-operation-state", "failed"), *JSON]
        answer = await ask(caller.gateway.port, "POST", "/nexus/callback", headers, said)
        assert answer.status == 400
        assert "too many values" in answer.body.decode()
        assert (await caller.record(operation))["state"] == "started"

    async def test_a_refusal_of_very_many_values_counts_as_text(self, caller: Caller, agent: Actor) -> None:
        agent.replies(Reply(400, b'{"message":"no","details":%b}' % TOWERS, JSON))
        record = (await caller.v1(await caller.register(agent.url), [("prefer", "wait=10")])).json
        assert record["state"] == "failed"
        assert record["failure"]["cause"]["cause"]["message"].startswith('{"message":"no","details":[[')
