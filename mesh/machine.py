"""The two machines of the project, declared once as data; no I/O and no clock.

An *operation* says what happened, a *delivery* says what is still owed. A cell of a table is a `Move` (next state) or
`ABSORB` (a duplicate: same reply, no change); an absent cell is illegal and refused. Python reads these dicts, the
store's Lua library gets them as table literals at load time (mesh/store/library.py), specs/machines.md and the
state x event test grid are generated from them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple, TypeAlias


class State(IntEnum):
    """Operation states (P65). The numbers are stored; never reuse one."""

    SCHEDULED = 1
    BACKING_OFF = 2
    STARTED = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELED = 6
    TIMED_OUT = 7

    @property
    def word(self) -> str:
        """The name on /v1: `backing_off`."""
        return self.name.lower()

    @property
    def terminal(self) -> bool:
        return self >= State.SUCCEEDED

    @property
    def nexus(self) -> str:
        """The name on the Nexus wire: running, succeeded, failed or canceled."""
        if not self.terminal:
            return "running"
        return "failed" if self is State.TIMED_OUT else self.word


STATES: Final = {state.value: state for state in State}
"""`State(number)` for the hot path: a call of an enum takes ten times as long as a look-up."""


class Event(StrEnum):
    """What can happen to an operation."""

    DISPATCH = "dispatch"
    """A gateway leased the start and sends the next attempt."""
    BLOCK = "block"
    """Nothing can be sent now (no instance, pause, limit, breaker); costs no attempt (P93)."""
    START = "start"
    """The handler answered 201, or the agent fetched the attempt."""
    RETRY = "retry"
    """The attempt failed in a way worth repeating."""
    LOSE = "lose"
    """The holder of the attempt went silent (gateway session dead, request lease or heartbeat over) or gave it back."""
    EXHAUST = "exhaust"
    """No attempt is left."""
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    """The handler reports the operation as canceled."""
    WITHDRAW = "withdraw"
    """The caller cancels and nothing is out there: never dispatched, or backing off (P31)."""
    REQUEST_CANCEL = "request_cancel"
    """The caller cancels and the handler is to know: an attempt is out there, or there is a journal to wind up."""
    SUSPEND = "suspend"
    """The handler waits and needs no process for it; a later dispatch goes on with its journal."""
    TIME_OUT = "time_out"


class Delivery(IntEnum):
    """Delivery states. The numbers are stored; never reuse one."""

    NONE = 0
    DUE = 1
    LEASED = 2
    DELIVERED = 3
    DEAD = 4
    DROPPED = 5

    @property
    def word(self) -> str:
        """The name on /v1: `dead`; a delivery that is due reads `pending`."""
        return {Delivery.DUE: "pending", Delivery.LEASED: "in_flight"}.get(self, self.name.lower())


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    OWE = "owe"
    LEASE = "lease"
    DELIVER = "deliver"
    DEFER = "defer"
    """The attempt failed; due again later."""
    BURY = "bury"
    """No further attempt: dead letter, visible, open to redelivery."""
    DROP = "drop"
    """No longer owed: answered directly, or the operation ended first."""
    REDELIVER = "redeliver"


class Kind(StrEnum):
    """What a delivery carries."""

    START = "start"
    CANCEL = "cancel"
    CALLBACK = "callback"


class Move(NamedTuple):
    """A legal step to state `to`."""

    to: IntEnum


class Absorb(NamedTuple):
    """A duplicate: answered like the first, nothing changes."""


ABSORB: Final = Absorb()

Cell: TypeAlias = Move | Absorb

_LIVE: Final = (State.SCHEDULED, State.BACKING_OFF, State.STARTED)
_ENDED: Final = (State.SUCCEEDED, State.FAILED, State.CANCELED, State.TIMED_OUT)
_OUTCOMES: Final = {
    Event.SUCCEED: State.SUCCEEDED,
    Event.FAIL: State.FAILED,
    Event.CANCEL: State.CANCELED,
    Event.TIME_OUT: State.TIMED_OUT,
    Event.EXHAUST: State.FAILED,
}


def _operation_table() -> dict[State, dict[Event, Cell]]:
    scheduled, backing_off, started = _LIVE
    table: dict[State, dict[Event, Cell]] = {
        scheduled: {
            Event.DISPATCH: Move(scheduled),
            Event.BLOCK: Move(scheduled),
            Event.START: Move(started),
            Event.RETRY: Move(backing_off),
            Event.LOSE: Move(scheduled),
            Event.WITHDRAW: Move(State.CANCELED),
            Event.REQUEST_CANCEL: Move(scheduled),
        },
        backing_off: {
            Event.DISPATCH: Move(scheduled),
            Event.BLOCK: Move(scheduled),
            Event.RETRY: ABSORB,
            Event.WITHDRAW: Move(State.CANCELED),
            Event.REQUEST_CANCEL: Move(backing_off),
        },
        started: {
            # Only of suspended work: nothing is out there.
            Event.DISPATCH: Move(scheduled),
            Event.BLOCK: Move(scheduled),
            Event.SUSPEND: Move(started),
            Event.START: ABSORB,
            Event.RETRY: Move(backing_off),
            Event.LOSE: Move(scheduled),
            Event.REQUEST_CANCEL: Move(started),
        },
    }
    for state in _LIVE:
        table[state] |= {event: Move(to) for event, to in _OUTCOMES.items()}
    for state in _ENDED:
        # A late 201, retry, lost lease, timer or cancel changes nothing; an equal outcome is a duplicate; another
        # one has no cell: conflict, the first one stands (docs/why/invariants.md I14, I16 to I18).
        late = (
            Event.START, Event.RETRY, Event.LOSE, Event.EXHAUST, Event.TIME_OUT, Event.WITHDRAW, Event.REQUEST_CANCEL,
            Event.SUSPEND,
        )  # fmt: skip
        table[state] = dict.fromkeys(late, ABSORB)
    table[State.SUCCEEDED][Event.SUCCEED] = ABSORB
    table[State.FAILED][Event.FAIL] = ABSORB
    table[State.CANCELED][Event.CANCEL] = ABSORB
    return table


OPERATION: Final = _operation_table()

DELIVERY: Final[dict[Delivery, dict[DeliveryEvent, Cell]]] = {
    Delivery.NONE: {DeliveryEvent.OWE: Move(Delivery.DUE), DeliveryEvent.DROP: ABSORB},
    Delivery.DUE: {
        DeliveryEvent.OWE: ABSORB,
        DeliveryEvent.LEASE: Move(Delivery.LEASED),
        # A reply booked late, after the lease was taken away, still says that the receiver has it.
        DeliveryEvent.DELIVER: Move(Delivery.DELIVERED),
        DeliveryEvent.DEFER: ABSORB,
        DeliveryEvent.DROP: Move(Delivery.DROPPED),
        DeliveryEvent.REDELIVER: ABSORB,
    },
    Delivery.LEASED: {
        DeliveryEvent.OWE: ABSORB,
        DeliveryEvent.LEASE: Move(Delivery.LEASED),
        DeliveryEvent.DELIVER: Move(Delivery.DELIVERED),
        DeliveryEvent.DEFER: Move(Delivery.DUE),
        DeliveryEvent.BURY: Move(Delivery.DEAD),
        DeliveryEvent.DROP: Move(Delivery.DROPPED),
        DeliveryEvent.REDELIVER: ABSORB,
    },
    Delivery.DELIVERED: {
        DeliveryEvent.OWE: ABSORB,
        DeliveryEvent.DELIVER: ABSORB,
        DeliveryEvent.DEFER: ABSORB,
        DeliveryEvent.BURY: ABSORB,
        DeliveryEvent.DROP: ABSORB,
        DeliveryEvent.REDELIVER: Move(Delivery.DUE),
    },
    Delivery.DEAD: {
        DeliveryEvent.OWE: ABSORB,
        DeliveryEvent.DELIVER: Move(Delivery.DELIVERED),
        DeliveryEvent.DEFER: ABSORB,
        DeliveryEvent.BURY: ABSORB,
        DeliveryEvent.DROP: ABSORB,
        DeliveryEvent.REDELIVER: Move(Delivery.DUE),
    },
    Delivery.DROPPED: {
        DeliveryEvent.OWE: Move(Delivery.DUE),
        DeliveryEvent.DELIVER: ABSORB,
        DeliveryEvent.DEFER: ABSORB,
        DeliveryEvent.BURY: ABSORB,
        DeliveryEvent.DROP: ABSORB,
    },
}

BLOCKED_REASONS: Final = (
    "no_instance", "unreachable", "breaker", "paused", "concurrency", "rate", "busy", "endpoint_deleted", "no_version",
    "namespace_concurrency", "namespace_rate",
)  # fmt: skip
"""Why a scheduled operation waits without using an attempt; shown as `blocked` beside the state. `busy`: agents that
fetch their work are there, and none asks for more. `no_version`: no live instance of the version that must run it."""


def step(state: State, event: Event) -> State | None:
    """The state after `event`, the same state for a duplicate, None when the cell is illegal."""
    cell = OPERATION[state].get(event)
    if cell is None:
        return None
    return State(cell.to) if isinstance(cell, Move) else state


def render() -> str:
    """specs/machines.md, generated; a test compares the file with this text."""
    lines = [
        "# The two machines",
        "",
        (
            "Generated from `mesh/machine.py`; do not edit. A cell is the next state, `=` is a duplicate (same reply,"
            " no change), an empty cell is illegal."
        ),
    ]
    for title, table in (("Operation", OPERATION), ("Delivery", DELIVERY)):
        events: list[StrEnum] = list(Event if title == "Operation" else DeliveryEvent)
        lines += ["", f"## {title}", "", "| state | " + " | ".join(events) + " |", "|---" * (len(events) + 1) + "|"]
        for state, row in table.items():
            cells: list[str] = []
            for event in events:
                cell = row.get(event)  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownMemberType, reportUnknownVariableType]
                cells.append("" if cell is None else cell.to.name.lower() if isinstance(cell, Move) else "=")
            lines.append(f"| {state.name.lower()} | " + " | ".join(cells) + " |")
    lines += ["", "```mermaid", "stateDiagram-v2"]
    edges: dict[tuple[str, str], list[str]] = {}
    for state, row in OPERATION.items():
        for event, cell in row.items():
            if isinstance(cell, Move):
                edges.setdefault((state.name.lower(), cell.to.name.lower()), []).append(event)
    lines.append("    [*] --> scheduled")
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in edges.items()]
    lines += ["```", ""]
    return "\n".join(lines)
