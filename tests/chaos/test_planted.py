"""The chaos run as a whole bites (I40): gateways with a planted bug are caught by the checker.

A few bugs on every run, all of them with `CHAOS_PLANTED=1`; each run is short and has only the fault that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from tests.chaos.checker import check
from tests.chaos.faults import Deed, Fault, Phase
from tests.chaos.ground import Ground
from tests.chaos.harness import carry_out
from tests.chaos.planted import BUGS
from tests.chaos.view import Promise

ALL = bool(os.environ.get("CHAOS_PLANTED"))
ALWAYS = ("dedup_without_digest", "callback_is_dropped")
SEED = 1
CALLERS = 60
PATIENCE_S = 5.0
"""A bug may keep work from ever ending; nobody waits for that long."""

CALM = (Phase("nothing breaks", (), 2.0),)
LONG_CALM = (Phase("nothing breaks", (), 6.0),)
GATEWAY = (
    Phase("a gateway", (Fault("kill gateway-a", Deed.KILL, "gateway-a", after_s=0.5, down_s=0.3, alone=True),), 6.5),
)
AGENT = (Phase("an agent", (Fault("kill worker-a", Deed.KILL, "worker-a", after_s=0.5, down_s=0.5),), 3.0),)


class Setup(NamedTuple):
    """What it takes to see a bug: `expected` invariants must be among those found broken."""

    expected: str
    phases: Sequence[Phase] = CALM
    jobs: str = ""
    answer_within_ms: int = 0


CAUGHT = {
    "no_takeover": Setup("I1 TAKEOVER", GATEWAY, "slow", 1_500),
    "webhook_id_per_try": Setup("I22"),
    "ack_ahead": Setup("I1 I7", GATEWAY),
    "no_fence": Setup("I10", LONG_CALM),
    "dedup_without_digest": Setup("I3"),
    "no_dedup": Setup("I2 I4"),
    "last_outcome_wins": Setup("I14 I16"),
    "callback_is_dropped": Setup("I20"),
    "stale_reads": Setup("I17"),
    "leases_for_ever": Setup("I1", AGENT),
}


def test_every_bug_has_its_run() -> None:
    assert CAUGHT.keys() == BUGS.keys()


@pytest.mark.parametrize("bug", [bug for bug in CAUGHT if ALL or bug in ALWAYS])
async def test_a_planted_bug_is_caught(bug: str) -> None:
    setup = CAUGHT[bug]
    with TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        async with Ground(Path(name), SEED, bug=bug, answer_within_ms=setup.answer_within_ms) as ground:
            run = await carry_out(ground, setup.phases, callers=CALLERS, jobs=setup.jobs, patience_s=PATIENCE_S)
    verdict = check(run.lines, run.snapshot, Promise())
    assert set(setup.expected.split()) <= verdict.broken, verdict.report()
