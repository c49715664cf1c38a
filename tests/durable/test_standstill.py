"""An agent that stood still asks before it begins: SIGSTOP over its lease, work taken by another instance, SIGCONT.

P470 to P474, over real processes; and what one attempt knows of its lease, against a clock of its own.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import mesh
from mesh.agent.durable.holding import DOUBT_S, STILL_S, TICK_S, Hold, Pulse
from mesh.clock import boot_s
from tests.agents.serving import until
from tests.durable.stage import Stage, start
from tests.durable.stub_agent import Job

LEASE_MS = 60_000
BUFFERED = {"push": 4, "pull": 1}
"""Operations that lie unread in the sockets of an agent: all starts are sent, a waiting poll is answered with one."""
STEPS = 3
FAN = 20
"""One after the other in the only thread of the first agent: enough to be stopped in, however late the signal comes."""


def test_a_pause_makes_what_is_read_after_it_doubtful_for_a_while() -> None:
    """P472: also where the first to notice it is not the tick, but what is read."""
    pulse, now_s = Pulse(LEASE_MS), boot_s()
    for at_s in (now_s, now_s + STILL_S / 2, now_s + STILL_S):
        assert pulse.known_until(at_s) > at_s
    awake_s = now_s + 3 * STILL_S
    ticks = [awake_s + TICK_S * n for n in range(round(DOUBT_S / TICK_S) + 2)]
    assert [pulse.known_until(at_s) > 0 for at_s in ticks] == [at_s >= awake_s + DOUBT_S for at_s in ticks]


def test_what_an_attempt_knows_of_its_lease() -> None:
    """P471: by when the mesh was asked, not by when the answer was read."""
    hold = Hold(Pulse(LEASE_MS))
    hold.lost()
    assert not hold.sure()
    hold.renewed(boot_s() - LEASE_MS / 1000)
    assert not hold.sure(), "an answer to a question of a lease ago"
    hold.renewed(boot_s())
    assert hold.sure()


def test_an_arrival_counts_unless_the_process_stood_still() -> None:
    """P472."""
    pulse = Pulse(LEASE_MS)
    hold = Hold(pulse)
    assert hold.sure()
    pulse.known_until(boot_s() + 2 * STILL_S)
    assert not Hold(pulse).sure()
    hold.arrived()
    assert not hold.sure()
    hold.renewed(boot_s())
    assert hold.sure()


@pytest.mark.timeout(120)
def test_a_process_that_stood_still_begins_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """P470, P472, P473: neither what lay in its buffers, nor what waited for a thread while one step ran."""
    with Stage(tmp_path) as stage, mesh.SyncClient(stage.gateway.url) as client:
        for mode in BUFFERED:
            stage.agent(tag=f"{mode}-A", mode=mode, endpoint=mode, threads=1, step_s=0.3, request_timeout_ms=1000)
        fan = start(client, Job(FAN), "pull", "fan")
        until(lambda: len(stage.effects()) >= 2, 20)
        try:
            for mode in BUFFERED:
                stage.signal_agent(signal.SIGSTOP, f"{mode}-A")
            begun = len(stage.effects())
            handles = [(mode, start(client, Job(STEPS), mode)) for mode in BUFFERED for _ in range(BUFFERED[mode])]
            until(lambda: all(handle.get()["attempt"] >= 1 for _, handle in handles), 20)
            for mode in BUFFERED:
                stage.agent(tag=f"{mode}-B", mode=mode, endpoint=mode, request_timeout_ms=1000)
            for _, handle in handles:
                assert handle.result(timeout_s=60)["tokens"] == 1000 * STEPS
            assert fan.result(timeout_s=60) == FAN
        finally:
            for mode in BUFFERED:
                stage.signal_agent(signal.SIGCONT, f"{mode}-A")
        for mode, handle in [*handles, ("pull", fan)]:
            ended = re.compile(rf"{handle.id}\.1: (?!the lease).*; what attempt \d+ did since does not count")
            until(lambda ended=ended, mode=mode: ended.search(stage.log(f"{mode}-A")), 20)
        effects = stage.effects()
    mine = [effect for effect in effects if effect["tag"].endswith("-A")]
    # One may have been past the question, and not yet in the file, when SIGSTOP fell.
    assert all(effect["key"].startswith(f"{fan.id}.1/") for effect in mine)
    assert len(mine) <= begun + 1
