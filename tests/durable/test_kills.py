"""SIGKILL at every step boundary and in the middle of every step of work of twelve; of the agent and of the gateway.

P220 to P225: recorded steps never run again; at most the one in flight does, with the same key. And two instances that
both believe they own an operation: one result, the loser told.
"""

from __future__ import annotations

import re
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

import mesh
from mesh.clock import pause
from tests.agents.serving import until
from tests.durable.stage import Stage, ledger, start
from tests.durable.stub_agent import WHEN, Job

STEPS = 12
KILLS = 6
CROWD = 6
"""Operations that each kill finds at different points: so many kills of so many operations are all 36 points."""
CLOCKS_MS = 2
"""The effects are dated by this machine's clock as Python gives it, the journal by the store."""


def jobs(phase: str, whom: str, *, first: int = 0, crowd: int = CROWD) -> list[Job]:
    """Between them they are killed at each point once, and each of them in every second step, one after the other."""
    return [
        Job(
            STEPS, first + number, phase, crowd,
            [(2 * kill + 1 + number // len(WHEN), WHEN[number % len(WHEN)], whom) for kill in range(KILLS)],
        )
        for number in range(CROWD)
    ]  # fmt: skip


def check(handle: Any, job: Job, effects: list[dict[str, Any]]) -> None:
    """One operation that was killed `KILLS` times."""
    mine = [effect for effect in effects if effect["key"].startswith(f"{handle.id}.1/")]
    _, _, counts = ledger(mine)
    assert {effect["key"] for effect in mine} == {f"{handle.id}.1/part-{n}#1" for n in range(1, STEPS + 1)}
    assert all(count <= 2 for count in counts.values()), counts
    assert sum(counts.values()) <= STEPS + KILLS, "a kill costs the step in flight, no other"
    if job.stops[0][2] == "agent":
        # What it was in the middle of had taken effect and was not recorded: it must run again, nothing else may.
        assert {step for step, count in counts.items() if count == 2} >= {
            f"part-{step}" for step, when, _ in job.stops if when == "middle"
        }
    events = list(handle.watch())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    recorded = {each.data["name"]: each.data["at"] for each in events if each.type == "step"}
    assert [event.data["name"] for event in events if event.type == "step"] == [
        f"part-{n}" for n in range(1, STEPS + 1)
    ], "each recorded once"
    for effect in mine:
        at_ms = datetime.fromisoformat(recorded[effect["step"]]).timestamp() * 1000
        assert effect["at_ms"] <= at_ms + CLOCKS_MS, "a recorded step ran again"


@pytest.mark.timeout(300)
def test_killed_at_every_point_in_turn(tmp_path: Path) -> None:
    """Both kinds of agent at once; then the gateway, which hits the work of both."""
    with Stage(tmp_path) as stage, mesh.SyncClient(stage.gateway.url, retry_for_s=120) as client:
        for mode in ("push", "pull"):
            stage.agent(tag=mode, mode=mode, endpoint=mode)
        for phase in ("agent", "gateway"):
            running: list[tuple[Any, Job]] = []
            for number, mode in enumerate(("push", "pull")):
                if phase == "agent":
                    mine = jobs(f"agent-{mode}", "agent")
                else:
                    mine = jobs("gateway", "gateway", first=CROWD * number, crowd=2 * CROWD)
                running += [(start(client, job, mode), job) for job in mine]
            for handle, _ in running:
                assert handle.result(timeout_s=120)["tokens"] == 1000 * STEPS
            effects = stage.effects()
            for handle, job in running:
                check(handle, job, effects)
        assert (stage.kills(), stage.gateway.deaths) == (3 * KILLS, KILLS), "every kill fell"
    points = {(step, when) for job in jobs("", "agent") for step, when, _ in job.stops}
    assert points == {(step, when) for step in range(1, STEPS + 1) for when in WHEN}


def owners(stage: Stage, operation: str) -> list[str | None]:
    """Who was handed its attempts."""
    url = f"{stage.gateway.url}/v1/operations/{operation}/events"
    items = httpx.get(url, trust_env=False).json()["items"]
    return [event.get("instance") for event in items if event["type"] == "started"]


TOLD = re.compile(r"attempt \d did since does not count|an answer came too late|an answer was refused")
"""By its heartbeat, or when it says something."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("mode", "late"), [("push", "step"), ("pull", "result")])
def test_two_that_believe_they_own_it_come_to_one_result_and_the_loser_is_told(
    tmp_path: Path, mode: str, late: str
) -> None:
    """P223: who was stopped for longer than its lease goes on, or ends, after another took over."""
    steps = 6 if late == "step" else 2
    options: dict[str, Any] = {"mode": mode, "step_s": 0.3, "end_s": 0 if late == "step" else 2}
    with Stage(tmp_path) as stage, mesh.SyncClient(stage.gateway.url) as client:
        stage.agent(tag="A", **options)
        handle = start(client, Job(steps))
        if late == "step":
            until(lambda: len(stage.effects()) >= 2, 20)
        else:
            until(lambda: handle.get().get("journal") == 2 * steps, 20)
        stage.signal_agent(signal.SIGSTOP, "A")
        stage.agent(tag="B", **options)
        if late == "step":
            until(lambda: any(effect["tag"] == "B" for effect in stage.effects()), 20)
        else:
            # Polls of the stopped agent that still wait may be handed an attempt before the other one is.
            until(lambda: len({who for who in owners(stage, handle.id) if who}) > 1, 20)
        stage.signal_agent(signal.SIGCONT, "A")
        result = handle.result(timeout_s=30)
        until(lambda: TOLD.search(stage.log("A")), 10)
        pause(0.5)  # the loser has nothing more to do: time in which it could do it
        effects = stage.effects()
        events: list[Any] = list(handle.watch())
    _, wasted, counts = ledger(effects)
    assert result["tokens"] == 1000 * steps
    assert result["attempt"] > 1
    assert all(count <= 2 for count in counts.values()), counts
    # The step in flight when it stopped, and the one that it began before it was told.
    assert wasted <= (2000 if late == "step" else 0)
    assert len({effect["key"] for effect in effects}) == steps, "whoever does a step does it under the same key"
    assert [event.type for event in events].count("succeeded") == 1
    if late == "step":
        assert "refused" in [event.type for event in events], "visible in the history"
