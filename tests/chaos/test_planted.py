"""The chaos run as a whole bites (I40): gateways with a planted bug are caught by the checker.

A few bugs on every run, all of them with `CHAOS_PLANTED=1`; each run is short and has only the fault that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.chaos.checker import check
from tests.chaos.faults import Deed, Fault, Phase
from tests.chaos.ground import Ground
from tests.chaos.harness import carry_out
from tests.chaos.planted import BUGS
from tests.chaos.view import Promise

ALL = bool(os.environ.get("CHAOS_PLANTED"))
ALWAYS = ("dedup_without_digest", "webhook_id_per_try")
SEED = 1
CALLERS = 60

CALM = (Phase("nothing breaks", (), 3.0),)
LONG_CALM = (Phase("nothing breaks", (), 6.0),)
GATEWAY = (
    Phase("a gateway", (Fault("kill gateway-a", Deed.KILL, "gateway-a", after_s=0.5, down_s=0.3, alone=True),), 6.5),
)
AGENT = (Phase("an agent", (Fault("kill worker-a", Deed.KILL, "worker-a", after_s=0.5, down_s=0.5),), 3.0),)

CAUGHT: dict[str, tuple[str, Sequence[Phase]]] = {
    "no_takeover": ("I1 TAKEOVER", GATEWAY),
    "webhook_id_per_try": ("I22", CALM),
    "ack_ahead": ("I1 I7", GATEWAY),
    "no_fence": ("I10", LONG_CALM),
    "dedup_without_digest": ("I3", CALM),
    "no_dedup": ("I2 I4", CALM),
    "last_outcome_wins": ("I14 I16", CALM),
    "callback_is_dropped": ("I20", CALM),
    "stale_reads": ("I17", CALM),
    "leases_for_ever": ("I1", AGENT),
}
"""Bug -> the invariants that must be among those found broken, and what it takes to see them broken."""


def test_every_bug_has_its_run() -> None:
    assert CAUGHT.keys() == BUGS.keys()


@pytest.mark.parametrize("bug", [bug for bug in CAUGHT if ALL or bug in ALWAYS])
async def test_a_planted_bug_is_caught(bug: str) -> None:
    expected, phases = CAUGHT[bug]
    with TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        async with Ground(Path(name), SEED, bug=bug) as ground:
            run = await carry_out(ground, phases, callers=CALLERS, patience_s=10)
    verdict = check(run.lines, run.snapshot, Promise())
    assert set(expected.split()) <= verdict.broken, verdict.report()
