"""What is broken when: a schedule drawn from a seed. Pure; the harness carries it out.

A round has six phases, all but the last in random order. A gateway is killed or frozen with everything else whole, so
that the time of takeover can be measured; agents and receiver, and the store, are broken alone; at last store and
gateway together.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import NamedTuple


class Deed(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"


class Fault(NamedTuple):
    """`after_s` from the beginning of its phase; the victim is back `down_s` later. `alone`: nothing else is broken."""

    name: str
    deed: Deed
    victim: str
    after_s: float
    down_s: float
    alone: bool = False


class Phase(NamedTuple):
    """Faults of one kind and the time to recover from them."""

    name: str
    faults: tuple[Fault, ...]
    length_s: float


GATEWAYS = ("gateway-a", "gateway-b")
WORKERS = ("worker-a", "worker-b", "worker-c")
LEASE_S = 3.0
"""After this much silence a gateway's session is dead; a zombie sleeps longer."""
TAKEOVER_S = 5.0
PHASES = 6
ROUND_S = 28.0
"""Phases of a round, and how long it takes."""


def schedule(seed: int, seconds: float) -> list[Phase]:
    """Whole rounds, at least one, until `seconds` are filled."""
    chance = Random(seed)
    phases: list[Phase] = []
    while not phases or sum(phase.length_s for phase in phases) + ROUND_S <= seconds:
        phases += _round(chance, 1 + len(phases) // PHASES)
    return phases


def _round(chance: Random, number: int) -> list[Phase]:
    first, second = chance.sample(GATEWAYS, 2)
    one, two = chance.sample(WORKERS, 2)

    def fault(deed: Deed, victim: str, down_s: tuple[float, float], *, alone: bool = False) -> Fault:
        name = f"{deed} {victim} #{number}"
        return Fault(name, deed, victim, chance.uniform(0.1, 1.2), chance.uniform(*down_s), alone)

    quick, slow, frozen = (0.05, 1.0), (0.3, 1.5), (LEASE_S + 0.6, LEASE_S + 1.6)
    whole = [
        Phase("kill a gateway", (fault(Deed.KILL, first, quick, alone=True),), TAKEOVER_S + 1.2),
        Phase("kill the other gateway", (fault(Deed.KILL, second, quick, alone=True),), TAKEOVER_S + 1.2),
        Phase("freeze a gateway", (fault(Deed.FREEZE, second, frozen, alone=True),), TAKEOVER_S + 1.2),
        Phase("kill the store", (fault(Deed.KILL, "store", quick),), 3.0),
        Phase("kill agents and receiver", tuple(fault(Deed.KILL, name, slow) for name in (one, two, "receiver")), 3.0),
    ]
    chance.shuffle(whole)
    both = (fault(Deed.KILL, "store", quick), fault(Deed.KILL, first, quick))
    named = tuple(each._replace(name=f"{each.name} (both)") for each in both)
    return [*whole, Phase("kill store and gateway", named, 3.5)]
