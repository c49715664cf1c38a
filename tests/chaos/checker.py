"""The judge of a chaos run: histories and the store's final state in, violations with their evidence out. Pure.

    verdict = check(read(files), await take(link))
    assert not verdict.violations, verdict.report()

One small function per invariant of docs/why/invariants.md, by id: rules_admission.py (I1-I8, I28), rules_runs.py
(I9-I19, I25, I27), rules_callbacks.py (I20-I22), rules_store.py (I32, I33), rules_validity.py (I39, takeover). I26 is
judged where time ends something (I19); I12, I13, I23, I24, I29-I31, I34-I38 need runs of their own.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tests.chaos import rules_admission, rules_callbacks, rules_runs, rules_store, rules_validity
from tests.chaos.faults import Deed
from tests.chaos.history import Line, What
from tests.chaos.rules_validity import in_flight, takeovers
from tests.chaos.snapshot import Snapshot
from tests.chaos.view import RULES, Promise, View

ROOMS = (rules_admission, rules_callbacks, rules_runs, rules_store, rules_validity)
SHOWN_MAX = 8
"""Violations that a report spells out."""
EVIDENCE_CHARS_MAX = 900


class Violation(NamedTuple):
    """`invariant` by its id, one sentence, the lines that show it."""

    invariant: str
    text: str
    evidence: tuple[str, ...]


class Verdict(NamedTuple):
    """`counts` say what the run was made of; a run without faults or answers is a violation of I39."""

    violations: list[Violation]
    counts: dict[str, int]

    @property
    def broken(self) -> set[str]:
        """Ids of the invariants that do not hold."""
        return {one.invariant for one in self.violations}

    def report(self) -> str:
        lines = [f"{len(self.violations)} violations: {dict(Counter(one.invariant for one in self.violations))}"]
        for one in self.violations[:SHOWN_MAX]:
            lines.append(f"{one.invariant}: {one.text}")
            lines += [f"    {line[:EVIDENCE_CHARS_MAX]}" for line in one.evidence]
        lines.append(f"counts: {self.counts}")
        return "\n".join(lines)


def check(histories: list[Line], final_dump: Snapshot, promise: Promise | None = None) -> Verdict:
    """Judge a run by every rule."""
    view = View(histories, final_dump, promise or Promise())
    violations = [
        Violation(invariant, finding.text, tuple(map(str, finding.evidence)))
        for invariant, rule in RULES.items()
        for finding in rule(view)
    ]
    return Verdict(violations, _counts(view))


def _counts(view: View) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for what, calls in view.calls.items():
        for call in calls:
            counts[f"{what}.{call.kind}"] += 1
    for what, lines in view.infos.items():
        counts[str(what)] += len(lines)
    for one in view.stored.values():
        counts[f"operations.{one.state.word}"] += 1
    delays_ms = [delay for _, _, delay in takeovers(view) if delay is not None]
    counts["takeovers"] = len(delays_ms)
    counts["takeover_ms_max"] = max(delays_ms, default=0)
    going_on = [count for line in view.infos[What.FAULT] if (count := in_flight(view, line)) is not None]
    counts["in_flight_min"], counts["in_flight_max"] = min(going_on, default=0), max(going_on, default=0)
    for line in view.infos[What.FAULT]:
        if line.detail.get("deed") == Deed.KILL:
            part = f"in_flight_at_kill_max.{str(line.detail['victim']).partition('-')[0]}"
            counts[part] = max(counts[part], in_flight(view, line) or 0)
    counts["callbacks.twice"] = sum(len(lines) > 1 for lines in view.of_operation(What.RECEIVED).values())
    attempts = [one.head.attempt for one in view.stored.values()]
    counts["operations.tried_again"] = sum(attempt > 1 for attempt in attempts)
    return dict(sorted(counts.items()))
