"""The list of probes: what each is about, which rule it stands for, what it needs. Probes enter themselves.

Knows how a probe ends, not what it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

from mesh.check.agent_kit import Kit

Run: TypeAlias = Callable[[Kit], Awaitable[str | None]]
"""Raises Breach, Skip or NoAnswer; a sentence that is returned is a hint: nothing is wrong, but it could be better."""


class Probe(NamedTuple):
    """One thing that is tried. Fields as in `mesh.check.report.Result`."""

    number: str
    name: str
    group: str
    rule: str
    expected: str
    reason: str
    run: Run


PROBES: Final[dict[str, Probe]] = {}
FIRST: Final = "S1"
"""Learns what the others need, and goes alone."""
LAST: Final = ("Z1", "Z2")
"""Look back, when everything else is over."""


def probe(number: str, name: str, rule: str, *, expected: str, reason: str) -> Callable[[Run], Run]:
    """Enter a probe. Its group is told by the letter of its number."""

    def enter(run: Run) -> Run:
        PROBES[number] = Probe(number, name, GROUPS[number[0]], rule, expected, reason, run)
        return run

    return enter


def ordered() -> list[Probe]:
    """All probes, as people should read them."""
    letters = list(GROUPS)
    return sorted(PROBES.values(), key=lambda each: (letters.index(each.number[0]), int(each.number[1:])))


GROUPS: Final = {
    "S": "starts",
    "C": "completions",
    "X": "cancel",
    "D": "deadlines",
    "R": "requests",
    "L": "leases",
    "Z": "afterwards",
}
