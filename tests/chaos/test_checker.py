"""The checker bites: a sound run passes, and a run with one thing wrong breaks the invariant that says so.

Every case changes the sound world of world.py in one place and names all invariants that must notice. The table holds
at least one case per rule; a rule that cannot fail would be a defect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.events import EventKind
from mesh.ids import operation_id
from mesh.machine import Delivery, State
from mesh.store.functions import load_library
from mesh.store.layout import Entry, Outcome, Request
from mesh.store.link import Link
from mesh.store.store import Store
from mesh.store.verbs import Start
from tests.chaos.checker import check
from tests.chaos.history import Kind, Recorder, What, digest, read
from tests.chaos.snapshot import take
from tests.chaos.view import RULES, Promise
from tests.chaos.world import CREATED_MS, INPUT, KEY, OP, RETENTION_MS, URL, World, events

OTHER = "00-00000000000000000002"
PROMISE = Promise(calls_min=1)

Break = Callable[[World], object]
CASES: list[tuple[str, Break]] = []


def case(broken: str) -> Callable[[Break], Break]:
    """A way to break the world; `broken` names every invariant that must notice, and no other may."""

    def add(change: Break) -> Break:
        CASES.append((broken, change))
        return change

    return add


# Admission


@case("I1 I21 I33")
def acked_operation_is_lost(world: World) -> None:
    for table in (world.snapshot.operations, world.snapshot.due, world.snapshot.keys):
        table.clear()
    world.snapshot.index["default"].clear()
    world.lines = [line for line in world.lines if line.what is not What.INVOKED]


@case("I1")
def acked_operation_never_ends(world: World) -> None:
    running(world)


def running(world: World) -> None:
    """The operation is still started, and consistently so."""
    head = world.operation.head
    head.state, head.callback, head.closed_at, head.callback_tries = State.STARTED, Delivery.NONE, 0, 0
    world.operation.outcome = None
    world.operation.events = world.operation.events[:3]
    head.seq = 3
    world.snapshot.due[OP] = float("inf")
    over = (What.RECEIVED, What.COMPLETED, What.EXECUTED, What.READ, What.RESULT)
    world.lines = [line for line in world.lines if line.what not in over]


@case("I1")
def operation_ends_long_after_its_deadline(world: World) -> None:
    world.operation.head.close_by = world.operation.head.closed_at - 60_000


@case("I2 I4")
def one_key_two_operations(world: World) -> None:
    world.twin(OTHER).events = events(EventKind.ACCEPTED, EventKind.CANCEL_REQUESTED, EventKind.CANCELED)
    twin = world.snapshot.operations[OTHER]
    twin.head.seq, twin.head.state, twin.head.attempt = 3, State.CANCELED, 0
    twin.outcome = Outcome("mesh", "canceled_before_start")
    world.start(op=OTHER, state="canceled")
    world.call(What.CANCEL, "ok", op=OTHER, status=202)


@case("I3")
def other_content_is_acknowledged(world: World) -> None:
    world.start(content="other")


@case("I3")
def other_content_is_refused_with_a_wrong_status(world: World) -> None:
    world.start("fail", content="other", status=400, op="")


@case("I3 I5 I11")
def operation_changes_its_input(world: World) -> None:
    world.operation.input = digest(b"other")


@case("I4 I5 I15")
def concurrent_starts_create_two(world: World) -> None:
    world.twin(OTHER).request = Request("other", "work", "slow", None, callback_url=URL, idempotency_key=KEY)


@case("I4 I32")
def key_leads_elsewhere(world: World) -> None:
    world.snapshot.keys["k1"] = OTHER


@case("I5")
def refused_start_left_an_operation(world: World) -> None:
    for line in world.lines:
        if line.what is What.START and line.kind is Kind.OK:
            line.kind, line.op, line.state = Kind.FAIL, "", ""


@case("I7")
def acked_operation_is_unknown_at_another_gateway(world: World) -> None:
    world.call(What.READ, "fail", op=OP, status=404)


@case("I8 I9 I25")
def operation_ends_without_a_dispatch(world: World) -> None:
    world.operation.events.pop(1)


@case("I28")
def busy_without_retry_after(world: World) -> None:
    world.start("fail", status=503, op="", content="")


# Runs


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


# Callbacks


@case("I20")
def callback_is_never_sent(world: World) -> None:
    world.operation.head.callback = Delivery.DROPPED
    world.operation.events.pop()
    world.operation.head.seq = 4
    world.lines = [line for line in world.lines if line.what is not What.RECEIVED]


@case("I20")
def callback_counts_as_delivered_and_was_not(world: World) -> None:
    world.lines = [line for line in world.lines if line.what is not What.RECEIVED]
    world.received(status=503)


@case("I20 I32")
def dead_callback_is_invisible(world: World) -> None:
    world.operation.head.callback = Delivery.DEAD


@case("I21")
def callback_of_an_operation_that_is_gone(world: World) -> None:
    world.received(op=OTHER, request_id=f"{OTHER}.1")


@case("I15 I21")
def callback_told_another_result(world: World) -> None:
    world.received(digest="other")


@case("I21")
def callback_told_another_state(world: World) -> None:
    world.received(state="failed")


@case("I22")
def webhook_id_changes(world: World) -> None:
    world.received(request_id=f"{OP}.1.2")


@case("I22")
def signature_is_wrong(world: World) -> None:
    world.received(detail={"signature": False, "age_s": 0})


@case("I22")
def timestamp_is_stale(world: World) -> None:
    world.received(detail={"signature": True, "age_s": 60})


# The store


@case("I32 I33")
def timer_is_missing(world: World) -> None:
    world.snapshot.due.clear()


@case("I32")
def timer_is_at_another_time(world: World) -> None:
    world.snapshot.due[OP] = CREATED_MS


@case("I32 I33")
def timer_is_in_two_indexes(world: World) -> None:
    world.snapshot.held["a.s-1"] = {OP: float(CREATED_MS + RETENTION_MS)}


@case("I32")
def lease_without_an_owner(world: World) -> None:
    head = world.operation.head
    head.callback, head.callback_at = Delivery.LEASED, head.closed_at + 5
    world.snapshot.due[OP] = head.closed_at + 5
    # What is leased is not delivered, which I20 would say; here nobody left before the outcome.
    world.line(What.START).state = "succeeded"


@case("I32")
def held_by_a_session_that_is_gone(world: World) -> None:
    lease_without_an_owner(world)
    world.operation.head.owner = "b.s-2"
    world.snapshot.held["b.s-2"] = {OP: world.snapshot.due.pop(OP)}


@case("I32 I33")
def missing_in_the_index(world: World) -> None:
    world.snapshot.index["default"].clear()


@case("I32")
def waiting_line_keeps_an_operation_that_ended(world: World) -> None:
    world.snapshot.waiting["e-1"] = [OP]


@case("I32")
def dead_list_names_a_living_delivery(world: World) -> None:
    world.snapshot.dead["default"] = [f"{OP}.1.callback"]


@case("I32")
def orphan_in_a_list(world: World) -> None:
    world.snapshot.waiting["e-1"] = [OTHER]


@case("I32")
def stray_key(world: World) -> None:
    world.snapshot.strays.append("m:{00}:junk")


@case("I33")
def counter_of_an_endpoint_leaks(world: World) -> None:
    world.snapshot.running["e-1"] = 1


# Validity


@case("ANSWER")
def gateway_breaks(world: World) -> None:
    world.call(What.READ, "unknown", op=OP, status=500)


@case("ANSWER")
def caller_is_never_answered(world: World) -> None:
    for _ in range(11):
        world.call(What.START, "fail", key="key-2", content="c", input="i", code="not_sent")
    for _ in range(20):
        world.call(What.RESULT, "ok", op=OP, state="succeeded", status=200)


@case("I39")
def fault_never_fired(world: World) -> None:
    world.line(What.FAULT, Kind.INFO).detail["fired"] = False


@case("I39")
def nothing_went_well(world: World) -> None:
    for _ in range(20):
        world.start(None)


@case("I39")
def no_phase(world: World) -> None:
    world.lines = [line for line in world.lines if line.what is not What.PHASE]


@case("TAKEOVER")
def takeover_is_late(world: World) -> None:
    held(world)
    world.operation.events[1].after_ms = 0
    for at, event in enumerate(world.operation.events[2:]):
        event.after_ms = 9_000 + at


def held(world: World) -> None:
    """The gateway was killed 1 ms after acceptance, and held the operation."""
    world.line(What.FAULT, Kind.INFO).detail.update(held=[OP], at_ms=CREATED_MS + 1)


@pytest.mark.parametrize(("broken", "change"), [pytest.param(*each, id=each[1].__name__) for each in CASES])
def test_one_thing_wrong_breaks_its_invariant(broken: str, change: Break) -> None:
    world = World()
    change(world)
    verdict = check(world.lines, world.snapshot, PROMISE)
    assert verdict.broken == set(broken.split()), verdict.report()
    assert all(one.text for one in verdict.violations)


def test_a_sound_run_passes() -> None:
    world = World()
    held(world)
    verdict = check(world.lines, world.snapshot, PROMISE)
    assert not verdict.violations, verdict.report()
    assert verdict.counts["takeovers"] == 1
    assert verdict.counts["takeover_ms_max"] == 9


def test_every_rule_has_a_case() -> None:
    assert {name for broken, _ in CASES for name in broken.split()} == RULES.keys()


class TestWhatIsAllowed:
    """What looks odd and is right."""

    def test_an_unknown_start_may_appear_once(self) -> None:
        world = World()
        world.lines = [line for line in world.lines if line.kind is Kind.INFO or line.what is not What.START]
        world.lines = [line for line in world.lines if line.what not in (What.READ, What.RESULT)]
        world.start(None)
        verdict = check(world.lines, world.snapshot, PROMISE)
        assert verdict.broken == {"I39"}, verdict.report()  # nothing but the share of good calls is wrong

    def test_an_unknown_start_may_leave_nothing(self) -> None:
        world = World()
        world.call(What.START, None, key="key-2", content="c", input="i")
        assert not check(world.lines, world.snapshot, PROMISE).violations

    def test_an_answer_within_the_wait_owes_no_callback(self) -> None:
        world = World()
        callback_is_never_sent(world)
        world.line(What.START).state = "succeeded"
        assert not check(world.lines, world.snapshot, PROMISE).violations

    def test_an_attempt_that_reached_nobody_gives_its_number_back(self) -> None:
        world = World()
        again = [Entry(EventKind.BLOCKED, 12, 0, "unreachable"), Entry(EventKind.DISPATCHED, 15, 1)]
        world.operation.events[2:2] = again
        world.operation.head.seq += 2
        assert not check(world.lines, world.snapshot, PROMISE).violations

    def test_nexus_words_show_a_timeout_as_failed(self) -> None:
        world = World()
        ended(world, State.TIMED_OUT, EventKind.TIMED_OUT, Outcome("mesh", "schedule_to_close"))
        world.operation.head.close_by = world.operation.head.closed_at
        world.call(What.RESULT, "ok", op=OP, state="failed", status=424)
        assert not check(world.lines, world.snapshot, PROMISE).violations


class TestHistory:
    def test_lines_come_back_in_order_of_time_and_a_cut_one_is_left_out(self, tmp_path: Path) -> None:
        one, other = Recorder(tmp_path / "one", "p1"), Recorder(tmp_path / "other", "p2")
        written = [one(Kind.INVOKE, What.START, call="c", key="k"), other(Kind.INFO, What.FAULT, detail={"n": 1})]
        written.append(one(Kind.UNKNOWN, What.START, call="c"))
        one.close()
        other.close()
        with (tmp_path / "other").open("ab") as file:
            file.write(b'{"process":"p2","ki')
        assert read([tmp_path / "other", tmp_path / "one"]) == written


class TestSnapshot:
    async def test_it_holds_what_the_store_holds(self, link: Link) -> None:
        """A store with one waiting and one leased operation, written by the real functions, is in order."""
        await prepare(link)
        store = Store(link)
        await store.beat("a.s-1", join=True)
        for blocked in ("", "no_instance"):
            start = Start(operation_id(), "default", "e-1", f"k{blocked}", "d", "a.s-1", blocked=blocked)
            request = Request("work", "work", "slow", None, idempotency_key=f"key-{blocked}")
            await store.start(start, request, b"{}")
        snapshot = await take(link)
        held = [one for one in snapshot.operations.values() if one.head.owner]
        assert len(snapshot.operations) == 2
        assert list(snapshot.held["a.s-1"]) == [one.id for one in held]
        assert [one.input for one in held] == [digest(b"{}")]
        verdict = check([], snapshot, PROMISE)
        assert not {"I4", "I9", "I25", "I32", "I33"} & verdict.broken, verdict.report()
        assert snapshot.strays == []


async def prepare(link: Link) -> None:
    await load_library(link.call)
    await link.call("HSET", "m:{00}:ep:e-1", "gone", "0", "paused", "0", "max", 0, "rate", "0", "tat", 0, "run", 0)
