"""What is broken when: a schedule drawn from a seed. Pure; the harness carries it out.

A round has six phases, all but the last in random order. A gateway is killed or frozen with everything else whole, so
that the time of takeover can be measured; agents and receiver, and the store, are broken alone; at last store and
gateway together. Runs of several rounds have a storm after each: everything is killed or frozen at any time.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import NamedTuple


class Deed(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"
    """The store hears the gateway, and its replies are lost: held back for `down_s`, then the line is cut."""


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
STORM_S = 20.0
STORM_DOWN_S = 4.5
FROZEN_SHARE = 0.3
CUTTING_S = 9.0


def schedule(seed: int, seconds: float) -> list[Phase]:
    """Whole rounds, at least one, until `seconds` are filled."""
    chance = Random(seed)
    phases: list[Phase] = []
    while not phases or sum(phase.length_s for phase in phases) + ROUND_S <= seconds:
        number = 1 + len(phases) // (PHASES + 1)
        phases += _round(chance, number)
        if seconds >= ROUND_S + STORM_S:
            phases.append(_storm(chance, number))
    return phases


def lost_replies(seed: int) -> list[Phase]:
    """Every call that a gateway has out is applied and sent again, many times in a row (for proxied grounds)."""
    chance = Random(seed)
    faults: list[Fault] = []
    for victim in GATEWAYS:
        at_s = chance.uniform(0.1, 0.6)
        while at_s < CUTTING_S - 2:
            down_s = chance.uniform(0.02, 0.6)
            faults.append(Fault(f"cut {victim} at {at_s:.1f} s", Deed.CUT, victim, at_s, down_s))
            at_s += down_s + chance.uniform(0.2, 1.2)
    return [Phase("lose replies of the store", tuple(faults), CUTTING_S)]


def _storm(chance: Random, number: int) -> Phase:
    """Every victim again and again; never one that is down already."""
    faults: list[Fault] = []
    for victim in (*GATEWAYS, *WORKERS, "store", "receiver"):
        at_s = chance.uniform(0.1, 3.0)
        while at_s < STORM_S - STORM_DOWN_S:
            deed = Deed.FREEZE if chance.random() < FROZEN_SHARE else Deed.KILL
            down_s = chance.uniform(0.05, STORM_DOWN_S)
            faults.append(Fault(f"{deed} {victim} #{number} at {at_s:.1f} s", deed, victim, at_s, down_s))
            at_s += down_s + chance.uniform(1.0, 5.0)
    return Phase("storm", tuple(faults), STORM_S)


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
