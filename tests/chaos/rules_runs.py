"""I9-I19, I25, I27: attempts, completions, cancels, and the one path of an operation. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from mesh.events import EventKind
from mesh.machine import OPERATION, Event, Move, State
from tests.chaos.history import Kind, Line, What
from tests.chaos.snapshot import Stored
from tests.chaos.view import Call, Finding, View, evidence, mark_of, rule, stored_digest

ENDS = (EventKind.ATTEMPT_FAILED, EventKind.ATTEMPT_LOST, EventKind.BLOCKED)
"""After one of these a dispatch is no longer out there."""
AFTER_END = frozenset(
    {EventKind.CANCEL_DELIVERED, EventKind.CANCEL_FAILED, EventKind.CALLBACK_DELIVERED, EventKind.CALLBACK_FAILED}
    | {EventKind.CALLBACK_DEAD, EventKind.REDELIVERED}
)
BESIDE = frozenset({EventKind.CANCEL_REQUESTED, EventKind.REFUSED})
"""Told, and no step: what was refused of an attempt that was given up moved nothing."""
DEADLINES = {"schedule_to_close": "close_by", "schedule_to_start": "start_by", "start_to_close": "finish_by"}
STEPS: dict[int, tuple[Event, ...]] = {
    EventKind.DISPATCHED: (Event.DISPATCH,),
    EventKind.BLOCKED: (Event.BLOCK,),
    EventKind.STARTED: (Event.START,),
    EventKind.ATTEMPT_FAILED: (Event.RETRY,),
    EventKind.ATTEMPT_LOST: (Event.LOSE,),
    EventKind.SUCCEEDED: (Event.SUCCEED,),
    EventKind.FAILED: (Event.FAIL,),
    EventKind.CANCELED: (Event.CANCEL, Event.WITHDRAW),
    EventKind.TIMED_OUT: (Event.TIME_OUT,),
}


@rule("I9")
def i9_attempts_rise_and_do_not_overlap(view: View) -> Iterator[Finding]:
    """A dispatch follows the end of the one before with a higher number; no two agents get the same attempt."""
    for one in view.stored.values():
        problem = attempts(one)
        if problem:
            yield Finding(f"{one.id}: {problem}", (one,))
    seen: dict[tuple[str, int, int], list[Line]] = defaultdict(list)
    for line in view.infos[What.INVOKED]:
        seen[line.op, line.run, line.attempt].append(line)
    for (op, _, attempt), lines in seen.items():
        # The pool repeats a request once when a kept connection closes without a byte of the reply; an agent that was
        # killed and is back under its address gets the attempt again then, within the same lease.
        if len({line.process.rpartition(".")[0] for line in lines}) > 1:
            yield Finding(f"attempt {attempt} of {op} reached several agents", evidence(lines))
        one = view.stored.get(op)
        given = () if one is None else [event.attempt for event in one.events if event.code == EventKind.DISPATCHED]
        if attempt not in given:
            yield Finding(f"attempt {attempt} of {op} was never given", (*evidence(lines), *([one] if one else [])))


def attempts(one: Stored) -> str:
    """What is wrong with the order of the dispatches, or ""."""
    out = last = 0
    for event in one.events:
        if event.code == EventKind.DISPATCHED:
            if out:
                return f"attempt {event.attempt} began while {out} was out"
            if event.attempt <= last:
                return f"attempt {event.attempt} was given twice"
            out = last = event.attempt
        elif event.code in ENDS:
            # A blocked attempt surely reached nobody, and its number is given again.
            last = event.attempt if event.code == EventKind.BLOCKED else last
            out = 0
    return ""


@rule("I10")
def i10_superseded_attempts_change_nothing(view: View) -> Iterator[Finding]:
    """Once a later attempt is leased, a completion with an earlier one's token is refused."""
    for op, calls in completions(view).items():
        one = view.stored.get(op)
        if one is None or one.outcome is None or not one.head.beat_ms:
            continue
        end = next((at for at, event in enumerate(one.events) if EventKind(event.code).terminal), len(one.events))
        leased = [event.attempt for event in one.events[:end] if event.code == EventKind.STARTED]
        for call in calls:
            won = call.ok and mark_of(one.outcome.body) == call.invoke.mark
            if won and leased and call.invoke.attempt < leased[-1] == one.head.attempt:
                yield Finding(f"attempt {call.invoke.attempt} of {op} won, though {leased[-1]} was leased", (one,))


@rule("I11")
def i11_every_dispatch_carries_the_same_request(view: View) -> Iterator[Finding]:
    """Operation id, input and idempotency key (`{operation id}.{run}`, P40)."""
    for line in view.infos[What.INVOKED]:
        one = view.stored.get(line.op)
        if line.request_id != f"{line.op}.{line.run}":
            yield Finding(f"a handler of {line.op} got the request id {line.request_id}", (line,))
        if one is not None and line.input != one.input:
            yield Finding(f"a handler of {line.op} got another input than its caller sent", (line, one))


@rule("I14")
def i14_one_end(view: View) -> Iterator[Finding]:
    """At most one terminal event, and everybody who saw an end saw that one."""
    for one in view.stored.values():
        ends = [event for event in one.events if EventKind(event.code).terminal]
        if len(ends) > 1 or bool(ends) != one.state.terminal:
            yield Finding(f"operation {one.id} is {one.state.word} with {len(ends)} terminal events", (one,))
        elif ends and EventKind(ends[0].code).word != one.state.word:
            yield Finding(f"operation {one.id} is {one.state.word}, its history says otherwise", (one,))
        if one.state.terminal and one.outcome is None:
            yield Finding(f"operation {one.id} ended without an outcome", (one,))
        lines = [call.outcome for call in view.asked[one.id] if call.outcome is not None and call.outcome.terminal]
        for line in lines:
            if not same_end(line.state, one.state):
                yield Finding(f"operation {one.id} was shown as {line.state} and is {one.state.word}", (line, one))


def same_end(shown: str, state: State) -> bool:
    """Nexus words show `timed_out` as `failed`."""
    return shown in (state.word, state.nexus)


@rule("I15")
def i15_one_result(view: View) -> Iterator[Finding]:
    """Every read of a result shows the first accepted completion, byte for byte; a handler really made it."""
    made: dict[str, set[str]] = defaultdict(set)
    for line in (*view.infos[What.EXECUTED], *(call.invoke for call in view.calls[What.COMPLETED])):
        made[line.op].add(line.mark)
    received = view.of_operation(What.RECEIVED)
    for one in view.stored.values():
        expected = stored_digest(one)
        shown = [call.outcome for call in view.asked[one.id] if call.outcome is not None]
        wrong = [line for line in (*shown, *received[one.id]) if line.digest and line.digest != expected]
        if wrong:
            yield Finding(f"a result of {one.id} is not the recorded one", (*evidence(wrong), one))
        if one.state is State.SUCCEEDED and one.outcome is not None and mark_of(one.outcome.body) not in made[one.id]:
            yield Finding(f"no handler made the result of {one.id}", (one,))


@rule("I16")
def i16_duplicates_change_nothing(view: View) -> Iterator[Finding]:
    """An equal completion is accepted again, another one never."""
    for op, calls in completions(view).items():
        one = view.stored.get(op)
        kept = mark_of(one.outcome.body) if one is not None and one.outcome is not None else ""
        accepted = {call.invoke.mark for call in calls if call.ok and call.invoke.state == "succeeded"}
        if len(accepted) > 1:
            yield Finding(f"several outcomes of {op} were accepted: {sorted(accepted)}", evidence(flat(calls)))
        for call in calls:
            if call.kind is Kind.FAIL and call.invoke.mark == kept:
                yield Finding(f"an equal completion of {op} was refused", call.lines)


@rule("I17")
def i17_a_late_start_reply_moves_nothing(view: View) -> Iterator[Finding]:
    """After the end come deliveries and refusals of superseded attempts alone; a completion shows once accepted."""
    for one in view.stored.values():
        codes = [event.code for event in one.events]
        end = next((at for at, code in enumerate(codes) if EventKind(code).terminal), len(codes))
        for event in one.events[end + 1 :]:
            known = event.code in AFTER_END or event.code == EventKind.CANCEL_REQUESTED
            # P223: a superseded attempt's late answer is shown, and changed nothing.
            if not known and not (event.code == EventKind.REFUSED and event.attempt < one.head.attempt):
                yield Finding(f"{one.id}: {EventKind(event.code).word} after the end", (one,))
                break
    for op, calls in completions(view).items():
        done_ns = min((call.ended_ns for call in calls if call.ok and call.invoke.state == "succeeded"), default=None)
        for call in view.asked[op] if done_ns is not None else ():
            read = call.invoke.what in (What.READ, What.RESULT) and call.begun_ns > (done_ns or 0)
            if read and call.ok and call.outcome is not None and not call.outcome.terminal:
                yield Finding(f"{op} was completed and then shown as {call.outcome.state}", call.lines)


@rule("I18")
def i18_cancel_asks_and_does_not_end(view: View) -> Iterator[Finding]:
    """One request in the history however often it is repeated, none after the end, no cancellation unasked."""
    for one in view.stored.values():
        codes = [event.code for event in one.events]
        asked = [at for at, code in enumerate(codes) if code == EventKind.CANCEL_REQUESTED]
        end = next((at for at, code in enumerate(codes) if EventKind(code).terminal), len(codes))
        if len(asked) > 1 or any(at > end for at in asked):
            yield Finding(f"a repeated or late cancel of {one.id} left a trace", (one,))
        calls = [call for call in view.asked[one.id] if call.invoke.what is What.CANCEL]
        if one.state is State.CANCELED and not any(call.kind is not Kind.FAIL for call in calls):
            yield Finding(f"{one.id} was canceled and nobody asked", (one,))
        acked_ns = min((call.ended_ns for call in view.acked[one.id]), default=None)
        for call in calls:
            refused = call.outcome is not None and call.kind is Kind.FAIL and 400 <= call.outcome.status < 500
            if refused and acked_ns is not None and call.begun_ns > acked_ns:
                yield Finding(f"a cancel of {one.id} was refused", call.lines)


@rule("I19")
def i19_one_winner_and_losers_are_told(view: View) -> Iterator[Finding]:
    """A completion that was accepted is the outcome; time ends nothing before its deadline."""
    for op, calls in completions(view).items():
        one = view.stored.get(op)
        if one is None or one.outcome is None:
            continue
        for call in calls:
            won = one.state.word == call.invoke.state and mark_of(one.outcome.body) == call.invoke.mark
            if call.ok and call.invoke.state == "succeeded" and not won:
                yield Finding(f"a completion of {op} was accepted, but {one.state.word} won", (*call.lines, one))
    for one in view.stored.values():
        if one.state is State.TIMED_OUT and one.outcome is not None:
            deadline: int = getattr(one.head, DEADLINES.get(one.outcome.reason, "close_by"))
            if not deadline or one.head.closed_at < deadline:
                yield Finding(f"{one.id} timed out before its deadline", (one,))


@rule("I25")
def i25_the_history_is_a_path(view: View) -> Iterator[Finding]:
    """Events are 1..n without gaps, begin with acceptance, never step back in time, and walk the machine's table."""
    for one in view.stored.values():
        codes = [event.code for event in one.events]
        if len(codes) != one.head.seq or not codes or codes[0] != EventKind.ACCEPTED:
            yield Finding(f"the history of {one.id} has {len(codes)} of {one.head.seq} events", (one,))
            continue
        if any(later.after_ms < event.after_ms for event, later in zip(one.events, one.events[1:], strict=False)):
            yield Finding(f"the stamps of {one.id} run backwards", (one,))
        problem = walk(one)
        if problem:
            yield Finding(f"{one.id}: {problem}", (one,))


def walk(one: Stored) -> str:
    """Where the history leaves the table, or ""."""
    state = State.SCHEDULED
    for event in one.events[1:]:
        kind = EventKind(event.code)
        if kind in AFTER_END or kind in BESIDE:
            continue
        cells = [OPERATION[state].get(step) for step in STEPS.get(kind, ())]
        move = next((cell for cell in cells if isinstance(cell, Move)), None)
        if move is None:
            return f"{kind.word} is no step from {state.word}"
        state = State(move.to)
    return "" if state is one.state or not one.state.terminal else f"the history ends in {state.word}"


@rule("I27")
def i27_nobody_sees_time_run_backwards(view: View) -> Iterator[Finding]:
    """A read that begins after another ended shows at least as much, at whatever gateway."""
    for op, calls in view.asked.items():
        seen = [call for call in calls if call.ok and call.outcome is not None]
        for earlier in seen:
            for later in seen:
                if earlier.ended_ns < later.begun_ns and goes_back(earlier, later):
                    yield Finding(f"{op} went back", (*earlier.lines, *later.lines))


def goes_back(earlier: Call, later: Call) -> bool:
    before, after = earlier.outcome, later.outcome
    if before is None or after is None:
        return False
    if before.terminal and after.state and not after.terminal:
        return True
    return bool(before.seq and after.seq and after.seq < before.seq)


def completions(view: View) -> dict[str, list[Call]]:
    """What agents reported, by operation."""
    found: dict[str, list[Call]] = defaultdict(list)
    for call in view.calls[What.COMPLETED]:
        found[call.invoke.op].append(call)
    return found


def flat(calls: list[Call]) -> list[Line]:
    return [line for call in calls for line in call.lines]
