"""Ways to break the sound world, for the checker's own tests: the table, and breaches of I1-I8 and I28."""

from __future__ import annotations

from collections.abc import Callable

from mesh.events import EventKind
from mesh.machine import Delivery, State
from mesh.store.layout import Outcome, Request
from tests.chaos.history import Kind, What, digest
from tests.chaos.world import KEY, OP, URL, World, events

OTHER = "00-00000000000000000002"

Break = Callable[[World], object]
CASES: list[tuple[str, Break]] = []
"""Each changes the world in one place; the text names every invariant that must notice, and no other may."""


def case(broken: str) -> Callable[[Break], Break]:
    """Put a breach into the table."""

    def add(change: Break) -> Break:
        CASES.append((broken, change))
        return change

    return add


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
