"""The real store against the reference: every step compared, every walk driven to rest.

`MESH_MODEL_EXAMPLES=5000` makes both tests longer and their choices new each time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from random import Random
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import UNSET

from mesh.ids import pick_index
from mesh.machine import Kind
from mesh.store.link import Link
from tests.model.fixtures import NS
from tests.model.machine import (
    ANSWERS,
    ENTRIES,
    LIMITS,
    OUTCOMES,
    REPLIES,
    SEATS,
    SHARES,
    STEPS_MS,
    WAKES,
    StoreMachine,
)
from tests.servers import RawServer

WAYS: Final = ("", "", "breaker", "probe")
EXAMPLES: Final = int(os.environ.get("MESH_MODEL_EXAMPLES", "0"))
WALKS: Final = EXAMPLES or 24
WALK_STEPS: Final = 400
NAP_STEPS: Final = 15
"""For so many steps only one gateway may be awake: the other is stopped, and comes back as it was."""


@pytest.fixture(scope="module", autouse=True)
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of its own, since its library has another clock; nothing here needs the disk."""
    server = RawServer(tmp_path_factory.mktemp("model"), {"appendonly": "no", "save": ""})
    server.wait_ready()
    with asyncio.Runner() as runner:
        StoreMachine.runner, StoreMachine.link = runner, Link(server.address)
        runner.run(StoreMachine.link.connect())
        yield
        runner.run(StoreMachine.link.close())
    server.kill()


@pytest.mark.timeout(max(120, EXAMPLES))
def test_small_worlds() -> None:
    """Hypothesis chooses the steps, and shrinks what it finds to a story of a few."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=EXAMPLES or 100,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            print_blob=True,
        ),
    )


@pytest.mark.timeout(max(120, EXAMPLES))
@pytest.mark.parametrize("seed", range(WALKS))
def test_long_walks(seed: int) -> None:
    """Many steps in one world, where much is under way at once; a seed repeats its walk."""
    chance = Random(seed if not EXAMPLES else pick_index(1 << 30))
    world = StoreMachine()
    awake = (0, 1)
    for number in range(WALK_STEPS):
        if number % NAP_STEPS == 0:
            awake = chance.choice(((0, 1), (0,), (1,)))
        name = _step(world, chance, chance.choice(awake))
        try:
            world.agree()
        except AssertionError as fault:
            raise AssertionError(f"after step {number}, {name}") from fault
    world.teardown()


def _step(world: StoreMachine, chance: Random, g: int) -> str:
    """One rule, weighted so that the world stays busy: it starves when every rule is as likely as the next."""
    i, lose = chance.randrange(12), chance.random() < 0.1
    if world.gateways[g].cut is not None and chance.random() < 0.5:
        world.reconnect(g)
        return "reconnect"
    if (world.model.gone or world.model.paused) and chance.random() < 0.2:
        what = chance.choice(("put", "pull")) if world.model.gone else "resume"
        world.endpoint(what, chance.choice(LIMITS), chance.choice(SHARES))
        return "endpoint"
    outcome, few_ms = chance.choice([*OUTCOMES]), (0, 0, 0, 0, 0, 0, 3_000, 20_000)
    calls = {
        "start": (6, lambda: world.start(
            g, chance.choice(("", "", f"k{i % 5}")), chance.choice(("c1", "c1", "c2")), lose, callback=i % 3,
            attempts_max=chance.choice((0, 2, 3, 20)), close_ms=chance.choice(few_ms), start_ms=chance.choice(few_ms),
            run_ms=chance.choice(few_ms), lease_ms=chance.choice((1_500, 30_000, 30_000)),
            retention_ms=chance.choice((1, 60_000, 60_000)), blocked=chance.choice(("", "", "", "", "no_instance")),
            seat=chance.choice(SEATS),
            delay_ms=chance.choice((UNSET, UNSET, UNSET, UNSET, 0, 2_000)),
            ns=chance.choice((NS, NS, "b", "c")), priority=chance.choice((0, 0, 1, 9)),
        )),
        "claim": (6, lambda: world.claim(g, chance.choice((64, 64, 1)), lose)),
        "unblock": (4, lambda: world.unblock(g, chance.choice((64, 1)), chance.choice(WAYS), lose)),
        "book_outcome": (1, lambda: world.book_outcome(g, i, outcome, chance.random() < 0.3, lose)),
        "book_reply": (8, lambda: world.book_reply(g, i, chance.choice(REPLIES), lose)),
        "book_delivery": (4, lambda: world.book_delivery(g, i, chance.choice(("delivered", "deferred", "dead")), lose)),
        "beat": (8, lambda: world.beat(g, lose)),
        "reconnect": (1, lambda: world.reconnect(g)),
        "end": (1, lambda: world.end(g, chance.choice(("crash", "crash of an exclusive one", "leave")))),
        "hand_back": (1, lambda: world.hand_back(g, lose)),
        "time_passes": (8, lambda: world.time_passes(chance.choice((*STEPS_MS[:7] * 3, *STEPS_MS)))),
        "pull": (4, lambda: world.pull(
            g, chance.choice(("a1", "a2")), chance.choice((64, 64, 1)), chance.choice((1_500, 30_000, 30_000)), lose
        )),
        "endpoint": (1, lambda: world.endpoint(
            chance.choice(("put", "put", "pull", "pull", "pause", "resume", "delete")), chance.choice(LIMITS),
            chance.choice(SHARES),
        )),
    }  # fmt: skip
    if world.ids:
        kind = chance.choice((Kind.CANCEL, Kind.CALLBACK))
        calls["cancel"] = (1, lambda: world.cancel(g, i, lose))
        calls["redeliver"] = (1, lambda: world.redeliver(g, i, kind, lose))
    if world.tokens:
        calls["complete_by_token"] = (4, lambda: world.complete_by_token(g, i, outcome, lose))
        calls["answer"] = (4, lambda: world.answer(g, i, chance.choices(ANSWERS, k=1 + i % 3), lose))
        behind = chance.choice((0, 0, 0, 1))
        calls["append"] = (4, lambda: world.append(g, i, behind, chance.choice(ENTRIES), lose))
        calls["suspend"] = (3, lambda: world.suspend(g, i, behind, chance.choice(WAKES), chance.random() < 0.5, lose))
        calls["start_child"] = (
            3,
            lambda: world.start_child(
                g,
                i,
                chance.choice((0, 1)),
                chance.choice(("", "k1")),
                chance.choice(("c1", "c1", "c2")),
                lose,
                callback=i % 3,
                attempts_max=chance.choice((0, 2, 20)),
                close_ms=chance.choice(few_ms),
                start_ms=0,
                run_ms=chance.choice(few_ms),
                lease_ms=30_000,
                retention_ms=chance.choice((1, 60_000)),
                blocked="",
                seat=chance.choice(SEATS),
                delay_ms=chance.choice((UNSET, UNSET, UNSET, 2_000)),
                priority=chance.choice((0, 1)),
            ),
        )
        calls["heartbeat"] = (2, lambda: world.heartbeat(g, i, chance.choice((0, 2_000, 60_000)), lose))
    name = chance.choices([*calls], [weight for weight, _ in calls.values()])[0]
    calls[name][1]()
    return name
