"""I39 and the promise of takeover: did the run really break things, and did work go on in time. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.events import EventKind
from mesh.machine import Delivery
from tests.chaos.history import Line, What
from tests.chaos.snapshot import Stored
from tests.chaos.view import Finding, View, rule

MOVES = frozenset(
    {EventKind.DISPATCHED, EventKind.STARTED, EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELED}
    | {EventKind.TIMED_OUT, EventKind.CANCEL_DELIVERED, EventKind.CANCEL_FAILED}
    | {EventKind.CALLBACK_DELIVERED, EventKind.CALLBACK_FAILED, EventKind.CALLBACK_DEAD, EventKind.ATTEMPT_FAILED}
)
"""What shows that somebody works on the operation. Losing the attempt alone does not."""


@rule("I39")
def i39_the_run_was_worth_something(view: View) -> Iterator[Finding]:
    """Every planned fault fired, and in every phase enough calls went well."""
    fired = {line.detail.get("name") for line in view.infos[What.FAULT] if line.detail.get("fired")}
    phases = view.infos[What.PHASE]
    if not phases:
        yield Finding("the run names no phase")
    for phase in phases:
        missing = [name for name in phase.detail.get("faults", []) if name not in fired]
        if missing:
            yield Finding(f"faults that never fired: {missing}", (phase,))
        begun_ns, ended_ns = phase.detail["begun_ns"], phase.detail["ended_ns"]
        calls = [
            call
            for what in (What.START, What.READ, What.RESULT, What.CANCEL)
            for call in view.calls[what]
            if begun_ns <= call.begun_ns < ended_ns
        ]
        ok = sum(call.ok for call in calls)
        if len(calls) < view.promise.calls_min or ok < view.promise.ok_share_min * len(calls):
            yield Finding(f"{ok} of {len(calls)} calls went well in phase {phase.detail.get('name')}", (phase,))


@rule("TAKEOVER")
def takeover_is_in_time(view: View) -> Iterator[Finding]:
    """Issue 2: the work of a killed gateway moves again within 5 s (kills with nothing else broken meanwhile)."""
    for fault, one, delay_ms in takeovers(view):
        if delay_ms is None or delay_ms > view.promise.takeover_ms_max:
            how = "never" if delay_ms is None else f"after {delay_ms} ms"
            yield Finding(f"{one.id}, held by a killed gateway, moved again {how}", (fault, one))


def takeovers(view: View) -> Iterator[tuple[Line, Stored, int | None]]:
    """Fault, operation that the killed gateway held, milliseconds until it moved again (None: never)."""
    for fault in view.infos[What.FAULT]:
        killed_at_ms: int = fault.detail.get("at_ms", 0)
        for op in fault.detail.get("held", []):
            one = view.stored.get(op)
            if one is None:
                continue
            at_ms = [one.head.created_at + event.after_ms for event in one.events if event.code in MOVES]
            later = [at for at in at_ms if at >= killed_at_ms]
            if later or one.head.callback not in (Delivery.NONE, Delivery.DROPPED):
                yield fault, one, min(later) - killed_at_ms if later else None
