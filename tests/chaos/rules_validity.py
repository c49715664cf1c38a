"""I39 and the promises of issue 2: did the run break things, did everybody get an answer, did work go on. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.events import EventKind
from tests.chaos.history import Line, What
from tests.chaos.snapshot import Stored
from tests.chaos.view import Finding, View, rule

BUSY = 503
REPEATED_MIN = 10
"""Starts of one key without an answer that only a gateway which is gone for good explains."""
MOVES = frozenset(
    {
        EventKind.DISPATCHED,
        EventKind.BLOCKED,
        EventKind.STARTED,
        EventKind.SUCCEEDED,
        EventKind.FAILED,
        EventKind.CANCELED,
    }
    | {EventKind.TIMED_OUT, EventKind.CANCEL_DELIVERED, EventKind.CANCEL_FAILED}
    | {EventKind.CALLBACK_DELIVERED, EventKind.CALLBACK_FAILED, EventKind.CALLBACK_DEAD, EventKind.ATTEMPT_FAILED}
)
"""What shows that a gateway looks after the operation. Losing the attempt alone does not."""


@rule("ANSWER")
def every_caller_is_answered(view: View) -> Iterator[Finding]:
    """Issue 2: faults of the gateway are 503 or silence, and whoever repeats a start gets through in the end."""
    for what in (What.START, What.READ, What.RESULT, What.CANCEL):
        for call in view.calls[what]:
            if call.outcome is not None and call.outcome.status >= 500 and call.outcome.status != BUSY:
                yield Finding(f"{call.outcome.gateway} answered {call.outcome.status}", call.lines)
    for key, calls in view.starts.items():
        known = [call for call in calls if call.ok or (call.outcome is not None and 400 <= call.outcome.status < 500)]
        if not known and len(calls) > REPEATED_MIN:
            yield Finding(f"key {key} was asked for {len(calls)} times and never answered", calls[-1].lines)


@rule("I39")
def i39_the_run_was_worth_something(view: View) -> Iterator[Finding]:
    """Every planned fault fired, and in every phase enough of the calls that were sent went well."""
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
            and not (call.outcome is not None and call.outcome.code == "not_sent")
        ]
        ok = sum(call.ok for call in calls)
        if ok < max(view.promise.calls_min, view.promise.ok_share_min * len(calls)):
            yield Finding(f"{ok} of {len(calls)} calls went well in phase {phase.detail.get('name')}", (phase,))

    for fault in view.infos[What.FAULT]:
        going_on = in_flight(view, fault)
        if going_on is not None and going_on < view.promise.in_flight_min:
            yield Finding(f"only {going_on} operations were in flight at a fault", (fault,))


def in_flight(view: View, fault: Line) -> int | None:
    """Operations that were accepted and had not ended when the fault fired; None where nobody took the store's time."""
    at_ms = fault.detail.get("at_ms")
    if at_ms is None:
        return None
    return sum(
        one.head.created_at <= at_ms and (not one.head.closed_at or one.head.closed_at > at_ms)
        for one in view.stored.values()
    )


@rule("TAKEOVER")
def takeover_is_in_time(view: View) -> Iterator[Finding]:
    """Issue 2: the work of a killed gateway moves again within 5 s (kills with nothing else broken meanwhile)."""
    for fault, one, delay_ms in takeovers(view):
        if delay_ms is None or delay_ms > view.promise.takeover_ms_max:
            how = "never" if delay_ms is None else f"after {delay_ms} ms"
            yield Finding(
                f"{one.id}, held by a killed gateway, moved again {how}", (str(fault.detail.get("name")), one)
            )


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
            yield fault, one, min(later) - killed_at_ms if later else None
