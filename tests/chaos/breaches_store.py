"""Breaches of I20-I22, I32, I33, I39 and of the promises of issue 2: callbacks, bookkeeping, the run itself."""

from __future__ import annotations

from mesh.machine import Delivery, State
from tests.chaos.breaches import OTHER, case, running
from tests.chaos.history import Kind, What
from tests.chaos.world import CREATED_MS, OP, RETENTION_MS, World

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


@case("I1 TAKEOVER")
def nobody_takes_over(world: World) -> None:
    held(world)
    running(world)
    world.operation.events = world.operation.events[:2]
    head = world.operation.head
    head.state, head.seq, head.start, head.owner, head.start_at = (
        State.SCHEDULED,
        2,
        Delivery.LEASED,
        "a.s-1",
        CREATED_MS,
    )
    world.line(What.FAULT, Kind.INFO).detail["at_ms"] = CREATED_MS + 11
    world.snapshot.due.clear()
    world.snapshot.held["a.s-1"] = {OP: CREATED_MS}


def held(world: World) -> None:
    """The gateway was killed 1 ms after acceptance, and held the operation."""
    world.line(What.FAULT, Kind.INFO).detail.update(held=[OP], at_ms=CREATED_MS + 1)
