"""I1-I8: what an acknowledged, refused or unanswered start means for the store. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.events import EventKind
from mesh.machine import State
from tests.chaos.history import Kind, What
from tests.chaos.view import Finding, View, evidence, rule, stored_content

KEY_REUSED = (409, 422)
TOO_MANY = 429


@rule("I1")
def i1_every_acked_start_ends_once(view: View) -> Iterator[Finding]:
    """Present after recovery, in a terminal state, by its deadline."""
    for op, calls in view.acked.items():
        one = view.stored.get(op)
        if one is None:
            yield Finding(f"the acknowledged operation {op} is lost", calls[0].lines)
        elif not one.state.terminal:
            yield Finding(f"the acknowledged operation {op} never ended: {one.state.word}", (calls[0].invoke, one))
        elif one.head.close_by and one.head.closed_at > one.head.close_by + view.promise.deadline_slack_ms:
            late_ms = one.head.closed_at - one.head.close_by
            yield Finding(f"operation {op} ended {late_ms} ms after its deadline", (one,))


@rule("I2")
def i2_one_key_one_operation(view: View) -> Iterator[Finding]:
    """All acknowledgements of a key carry one operation id."""
    for key, calls in view.starts.items():
        ops = {call.op for call in calls if call.ok}
        if len(ops) > 1:
            lines = (line for call in calls if call.ok for line in call.lines)
            yield Finding(f"key {key} was acknowledged as {sorted(ops)}", evidence(lines))


@rule("I3")
def i3_other_content_is_refused(view: View) -> Iterator[Finding]:
    """With a key that was acknowledged for other content: never 2xx, and the operation stays what it was."""
    for key, calls in view.starts.items():
        acked = [call for call in calls if call.ok]
        contents = {call.invoke.content for call in acked}
        if len(contents) > 1:
            lines = (line for call in acked for line in call.lines)
            yield Finding(f"key {key} was acknowledged for {len(contents)} contents", evidence(lines))
        for call in calls:
            earlier = [one for one in acked if one.ended_ns < call.begun_ns]
            other = bool(earlier) and earlier[0].invoke.content != call.invoke.content
            if other and call.outcome is not None and 400 <= call.outcome.status < 500:
                status = call.outcome.status
                if status not in KEY_REUSED and status != TOO_MANY:
                    yield Finding(f"key {key} with other content was refused with {status}", call.lines)
        for call in acked:
            one = view.stored.get(call.op)
            if one is not None and stored_content(one) != call.invoke.content:
                yield Finding(f"operation {call.op} is not what its start asked for", (*call.lines, one))
                break


@rule("I4")
def i4_concurrent_starts_create_one_operation(view: View) -> Iterator[Finding]:
    """However many starts carried the key, the store holds one operation of it, and the key leads to it."""
    for key, found in view.by_key.items():
        if key and len(found) > 1:
            yield Finding(f"key {key} created {len(found)} operations", evidence(found))
        for one in found:
            if one.key and view.snapshot.keys.get(one.key) != one.id:
                leads = view.snapshot.keys.get(one.key)
                yield Finding(f"the key of operation {one.id} leads to {leads or 'nothing'}", (one,))


@rule("I5")
def i5_nothing_is_invented(view: View) -> Iterator[Finding]:
    """Every stored operation was asked for by a start that was not surely refused."""
    for one in view.stored.values():
        calls = view.starts.get(one.request.idempotency_key, [])
        content = stored_content(one)
        if not any(call.kind is not Kind.FAIL and call.invoke.content == content for call in calls):
            lines = (line for call in calls for line in call.lines)
            yield Finding(f"operation {one.id} was never asked for, or only refused", (one, *evidence(lines)))


@rule("I7")
def i7_a_start_can_be_read_at_once(view: View) -> Iterator[Finding]:
    """What is asked about an acknowledged operation is never answered 404, at whatever gateway."""
    for op, calls in view.acked.items():
        acked_ns = min(call.ended_ns for call in calls)
        for what in (What.READ, What.RESULT, What.CANCEL):
            for call in view.asked[op]:
                known = call.invoke.what is what and call.begun_ns > acked_ns
                if known and call.outcome is not None and call.outcome.status in (404, 410):
                    yield Finding(f"operation {op} was acknowledged and then unknown", (*calls[0].lines, *call.lines))


@rule("I8")
def i8_every_operation_is_dispatched(view: View) -> Iterator[Finding]:
    """At least once, unless it was canceled or ran out of time before."""
    for one in view.stored.values():
        dispatched = any(event.code == EventKind.DISPATCHED for event in one.events)
        if not dispatched and one.state not in (State.CANCELED, State.TIMED_OUT):
            yield Finding(f"operation {one.id} was never dispatched", (one,))


@rule("I28")
def i28_refusals_say_when_to_come_back(view: View) -> Iterator[Finding]:
    """Every 429 and 503 carries Retry-After (that they leave no state is I5)."""
    for what in (What.START, What.READ, What.RESULT, What.CANCEL):
        for call in view.calls[what]:
            busy = call.outcome is not None and call.outcome.status in (429, 503)
            if busy and call.outcome is not None and not call.outcome.detail.get("retry_after"):
                yield Finding("a 429 or 503 without Retry-After", call.lines)
