"""SIGKILL at every step boundary and in the middle of every step, in turn; of the agent and of the gateway (P220-P225).

Recorded steps never run again; at most the one in flight does, with the same key. And two instances that both believe
they own an operation: one result, the loser told.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.clock import pause
from tests.agents.serving import until
from tests.durable.stage import Stage, ledger

STEPS = 4
POINTS = [(step, when) for step in range(1, STEPS + 1) for when in ("before", "middle", "after")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("whom", "mode"), [("agent", "push"), ("gateway", "push"), ("agent", "pull")])
def test_killed_at_every_point_in_turn(tmp_path: Path, whom: str, mode: str) -> None:
    kills = [{"step": step, "when": when, "whom": whom} for step, when in POINTS]
    with Stage(tmp_path) as stage, mesh.SyncClient(stage.gateway.url, retry_for_s=120) as client:
        stage.agent(kills=kills, mode=mode)
        handle = client.start("coder", "coder", "build", STEPS)
        result = handle.result(timeout_s=200)
        effects = stage.effects()
        useful, wasted, counts = ledger(effects)
        events = list(handle.watch())
    assert result["tokens"] == 1000 * STEPS
    assert stage.kills() == len(kills), "every kill fell"
    assert useful == 1000 * STEPS
    assert {effect["key"] for effect in effects} == {f"{handle.id}.1/part-{n}#1" for n in range(1, STEPS + 1)}
    # In the middle of a step: it may run once more. At its boundaries: what is recorded never does.
    assert all(count <= 2 for count in counts.values()), counts
    assert wasted <= 1000 * STEPS
    steps = [event.data for event in events if event.type == "step"]
    assert [each["name"] for each in steps] == [f"part-{n}" for n in range(1, STEPS + 1)], "each recorded once"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.timeout(120)
def test_two_that_believe_they_own_it_come_to_one_result_and_the_loser_is_told(tmp_path: Path) -> None:
    """P223: an agent that was stopped for longer than its lease goes on where another one has taken over."""
    with Stage(tmp_path) as stage, mesh.SyncClient(stage.gateway.url) as client:
        stage.agent(tag="A", step_s=0.3)
        handle = client.start("coder", "coder", "build", 6)
        until(lambda: len(stage.effects()) >= 2, 20)
        stage.signal_agent(signal.SIGSTOP, "A")
        stage.agent(tag="B", step_s=0.3)
        until(lambda: any(effect["tag"] == "B" for effect in stage.effects()), 20)
        stage.signal_agent(signal.SIGCONT, "A")
        result = handle.result(timeout_s=30)
        until(lambda: "does not count" in stage.log("A"), 10)
        pause(0.5)  # the loser has nothing more to do: time in which it could do it
        effects = stage.effects()
        events: list[Any] = list(handle.watch())
    _, wasted, counts = ledger(effects)
    assert result["tokens"] == 6000
    assert all(count <= 2 for count in counts.values()), counts
    assert wasted <= 2000, "the step in flight when it stopped; the one it had begun before it was told"
    assert len({effect["key"] for effect in effects}) == 6, "whoever does a step does it under the same key"
    assert [event.type for event in events].count("succeeded") == 1
    refused = [event for event in events if event.type == "refused"]
    assert refused, "visible in the history"
    assert re.search(r"attempt \d did since does not count", stage.log("A"))
