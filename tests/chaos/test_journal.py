"""kill -9 of gateway and store between an append and its reply: what was acknowledged is there, and nothing twice.

An agent that gets no answer says the same again, to whoever answers then. One process tree of `mesh dev`, killed at a
moment drawn from a seed after some dozens of appends were sent; `CHAOS_SEED=n` repeats a schedule.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from mesh.clock import monotonic_s, sleep
from mesh.ids import pick_index
from tests.surface.actors import Actor, started
from tests.surface.gateways import KEYLESS, Caller, Gateway
from tests.surface.wire import Answer, ask

SEED: Final = int(os.environ.get("CHAOS_SEED") or pick_index(1_000_000))
WRITERS: Final = 24
ROUNDS: Final = 8
UNTIL_S: Final = 30.0
LEASE: Final = [("mesh-lease-ms", "600000")]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        one = Gateway(Path(name), KEYLESS)
        one.start()
        yield one
        one.kill()


async def say(gateway: Gateway, verb: str, token: str, **fields: Any) -> Answer | None:
    """The answer about one attempt, or None when nobody says anything."""
    headers = [("content-type", "application/json"), ("mesh-task-token", token)]
    try:
        return await ask(gateway.port, "POST", f"/v1/tasks/{verb}", headers, json.dumps(fields).encode(), within_s=10)
    except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
        return None


async def insist(gateway: Gateway, verb: str, token: str, **fields: Any) -> dict[str, Any]:
    """The same again until it is answered for good."""
    end_s = monotonic_s() + UNTIL_S
    while True:
        answer = await say(gateway, verb, token, **fields)
        if answer is not None and answer.status == 200:
            return answer.json
        assert answer is None or answer.status == 503, answer
        assert monotonic_s() < end_s, "nobody answers any more"
        await sleep(0.05)


async def journal_of(gateway: Gateway, token: str) -> list[int]:
    """The numbers in a journal, as they stand in it."""
    found: list[int] = []
    while True:
        page = await insist(gateway, "read", token, after=len(found))
        found += [entry["k"] for entry in page["entries"]]
        if len(found) >= page["length"]:
            return found


async def begin(gateway: Gateway, agent: Actor) -> list[str]:
    """Operations that run; the task token of each."""
    agent.replies(started(headers=LEASE))
    caller = Caller(gateway)
    endpoint = await caller.register(agent.url)
    operations = [await caller.begin(endpoint) for _ in range(WRITERS)]
    await agent.until(WRITERS)
    for operation in operations:
        await caller.until(operation, state="started")
    return [call.completion_token for call in agent.starts]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("what", ["gateway", "store"])
async def test_an_append_whose_reply_was_lost_is_there_once(gateway: Gateway, what: str) -> None:
    chance = Random(f"{SEED} {what}")
    agent = await Actor().start()
    tokens = await begin(gateway, agent)
    said = dict.fromkeys(tokens, 0)
    lost = found = 0
    for _ in range(ROUNDS):
        calls = {
            token: asyncio.ensure_future(say(gateway, "journal", token, at=at, entries=[{"kind": "step", "k": at}]))
            for token, at in said.items()
        }
        await sleep(chance.uniform(0.0, 0.012))
        if what == "gateway":
            gateway.kill()
            gateway.start()
        else:
            os.kill(gateway.store_pid(), 9)
        answers = {token: await call for token, call in calls.items()}
        for token, at in said.items():
            answer = answers[token]
            if answer is None or answer.status != 200:
                lost += 1
                found += len(await journal_of(gateway, token)) == at + 1
            # Also what was answered is said again: an agent that died after the reply does not know of it.
            again = await insist(gateway, "journal", token, at=at, entries=[{"kind": "step", "k": at}])
            assert (again["status"], again["length"]) == ("ok", at + 1), f"CHAOS_SEED={SEED}"
            said[token] = at + 1
    for token in tokens:
        assert await journal_of(gateway, token) == [*range(ROUNDS)], f"CHAOS_SEED={SEED}"
    sys.stdout.write(f"CHAOS_SEED={SEED} {what}: {lost} appends without an answer, {found} of them were kept\n")
    if what == "gateway":
        assert lost > 0, f"CHAOS_SEED={SEED}: no append was ever left without an answer"
    await agent.stop()


@pytest.mark.timeout(120)
async def test_a_suspension_whose_reply_was_lost_wakes_once(gateway: Gateway) -> None:
    """Killed while dozens suspend: each goes on with attempt 2, or is told that it did, and none goes on twice."""
    chance = Random(f"{SEED} suspend")
    agent = await Actor().start()
    tokens = await begin(gateway, agent)
    calls = [asyncio.ensure_future(say(gateway, "suspend", token, at=0, wake_in_ms=2_000)) for token in tokens]
    await sleep(chance.uniform(0.001, 0.01))
    gateway.kill()
    gateway.start()
    await asyncio.gather(*calls)
    caller = Caller(gateway)
    for token in tokens:
        answer = await say(gateway, "suspend", token, at=0, wake_in_ms=2_000)
        assert answer is not None
        # 409: it was suspended before the kill and goes on already.
        assert answer.status in (200, 409), answer
    await agent.until(2 * WRITERS, 30)
    for call in agent.starts[WRITERS:]:
        assert call.attempt == 2
        assert (await call.complete(body=b'"done"')).status == 200
    assert len(agent.starts) == 2 * WRITERS
    for call in agent.starts[WRITERS:]:
        assert (await caller.record(call.operation))["state"] == "succeeded"
    await agent.stop()
