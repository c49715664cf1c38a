"""Breaches of I9-I19, I25 and I27: attempts, completions, cancels, histories."""

from __future__ import annotations

from mesh.events import EventKind
from mesh.machine import Delivery, State
from mesh.store.layout import Entry, Outcome
from tests.chaos.breaches import case
from tests.chaos.history import Kind, What, digest
from tests.chaos.world import INPUT, OP, World


@case("I9")
def attempt_overlaps(world: World) -> None:
    world.operation.events[2:2] = [Entry(EventKind.DISPATCHED, 15, 2)]
    world.operation.head.seq += 1


@case("I9")
def attempt_is_given_twice(world: World) -> None:
    again = [Entry(EventKind.ATTEMPT_LOST, 12, 1, "gateway"), Entry(EventKind.DISPATCHED, 15, 1)]
    world.operation.events[2:2] = again
    world.operation.head.seq += 2


@case("I9")
def attempt_reaches_two_agents(world: World) -> None:
    world.info(What.INVOKED, "worker-b.1", op=OP, run=1, attempt=1, input=INPUT, request_id=f"{OP}.1")


@case("I9")
def agent_sees_an_attempt_that_was_never_given(world: World) -> None:
    world.info(What.INVOKED, "worker-b.1", op=OP, run=1, attempt=2, input=INPUT, request_id=f"{OP}.1")


@case("I10")
def superseded_attempt_wins(world: World) -> None:
    again = [Entry(EventKind.ATTEMPT_LOST, 22, 1, "heartbeat"), Entry(EventKind.DISPATCHED, 23, 2)]
    world.operation.events[3:3] = [*again, Entry(EventKind.STARTED, 24, 2)]
    head = world.operation.head
    head.seq, head.attempt, head.beat_ms = head.seq + 3, 2, 2_000


@case("I11")
def dispatch_carries_another_input(world: World) -> None:
    world.line(What.INVOKED, Kind.INFO).input = "other"


@case("I11")
def dispatch_carries_another_request_id(world: World) -> None:
    world.line(What.INVOKED, Kind.INFO).request_id = f"{OP}.1.1"


@case("I14 I17 I25")
def operation_ends_twice(world: World) -> None:
    world.operation.events[4:4] = [Entry(EventKind.FAILED, 40, 1)]
    world.operation.head.seq += 1


@case("I14")
def caller_saw_another_end(world: World) -> None:
    world.line(What.READ).state = "failed"


@case("I15")
def two_reads_differ(world: World) -> None:
    world.line(What.RESULT).digest = "other"


@case("I15 I16 I19")
def result_comes_from_nowhere(world: World) -> None:
    world.operation.outcome = Outcome("result", "", "application/json", b'{"mark":"m9"}')
    world.lines = [line for line in world.lines if line.what is not What.RECEIVED]
    world.received(digest=digest(b'{"mark":"m9"}'))
    world.line(What.RESULT).digest = digest(b'{"mark":"m9"}')
    world.call(What.COMPLETED, "ok", "worker-a.1", op=OP, mark="m8", state="succeeded", attempt=1)


@case("I16 I19")
def conflicting_completion_is_accepted(world: World) -> None:
    world.call(What.COMPLETED, "ok", "worker-a.1", op=OP, mark="m2", state="succeeded", attempt=1)


@case("I16")
def equal_completion_is_refused(world: World) -> None:
    world.call(What.COMPLETED, "fail", "worker-a.1", op=OP, mark="m1", state="succeeded", status=409, attempt=1)


@case("I17 I25")
def late_201_regresses(world: World) -> None:
    started = world.operation.events.pop(2)
    world.operation.events.insert(3, Entry(started.code, 35, 1))


@case("I17")
def attempt_that_ended_it_is_refused(world: World) -> None:
    world.operation.events.append(Entry(EventKind.REFUSED, 60, 1))
    world.operation.head.seq += 1


@case("I17")
def completed_and_then_shown_as_running(world: World) -> None:
    world.lines = [line for line in world.lines if line.what not in (What.READ, What.RESULT)]
    world.call(What.READ, "ok", op=OP, state="started", seq=3, status=200)


@case("I18")
def cancel_after_the_end_leaves_a_trace(world: World) -> None:
    world.operation.events.append(Entry(EventKind.CANCEL_REQUESTED, 60, 1))
    world.operation.head.seq += 1


@case("I18")
def repeated_cancel_leaves_a_trace(world: World) -> None:
    world.operation.events[2:2] = [Entry(EventKind.CANCEL_REQUESTED, 15, 1)] * 2
    world.operation.head.seq += 2


@case("I18")
def repeated_cancel_is_refused(world: World) -> None:
    world.call(What.CANCEL, "ok", op=OP, status=202)
    world.call(What.CANCEL, "fail", op=OP, status=409)


@case("I18")
def canceled_though_nobody_asked(world: World) -> None:
    ended(world, State.CANCELED, EventKind.CANCELED, Outcome("mesh", "canceled_before_start"))


def ended(world: World, state: State, code: EventKind, outcome: Outcome) -> None:
    """The operation ended that way instead, and everybody was told so."""
    world.operation.head.state = state
    world.operation.events[3] = Entry(code, 30, 1)
    world.operation.outcome = outcome
    over = (What.RECEIVED, What.COMPLETED, What.READ, What.RESULT)
    world.lines = [line for line in world.lines if line.what not in over]
    world.operation.head.wants_callback, world.operation.head.callback = 0, Delivery.NONE
    world.operation.events.pop()
    world.operation.head.seq = 4


@case("I19")
def completion_is_accepted_and_time_wins(world: World) -> None:
    ended(world, State.TIMED_OUT, EventKind.TIMED_OUT, Outcome("mesh", "schedule_to_close"))
    world.operation.head.close_by = world.operation.head.closed_at
    world.call(What.COMPLETED, "ok", "worker-a.1", op=OP, mark="m1", state="succeeded", attempt=1)


@case("I19")
def times_out_too_early(world: World) -> None:
    ended(world, State.TIMED_OUT, EventKind.TIMED_OUT, Outcome("mesh", "schedule_to_close"))
    world.operation.head.close_by = world.operation.head.closed_at + 1


@case("I25")
def history_has_a_gap(world: World) -> None:
    world.operation.head.seq += 1


@case("I25")
def stamps_run_backwards(world: World) -> None:
    world.operation.events[3].after_ms = 5


@case("I25")
def history_leaves_the_table(world: World) -> None:
    failed = [Entry(EventKind.ATTEMPT_FAILED, 12, 1), Entry(EventKind.STARTED, 13, 1)]
    world.operation.events[2:3] = failed
    world.operation.head.seq += 1


@case("I27")
def sequence_runs_backwards(world: World) -> None:
    world.call(What.READ, "ok", op=OP, state="succeeded", seq=3, status=200)


@case("I17 I27")
def end_is_taken_back_for_one_reader(world: World) -> None:
    world.call(What.RESULT, "ok", op=OP, state="running", status=202)
