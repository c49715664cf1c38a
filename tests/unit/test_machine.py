"""The two machines: every state meets every event, in Python and in the store's Lua, and the pages drawn from them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from enum import IntEnum, StrEnum
from itertools import product
from pathlib import Path

import pytest

from mesh import events
from mesh.machine import DELIVERY, OPERATION, Cell, Delivery, DeliveryEvent, Event, Move, State, render, step
from mesh.store.functions import load_library
from mesh.store.library import source
from mesh.store.link import Link

SPECS = Path(__file__).parents[2] / "specs"

# `.` the cell is illegal, `=` a duplicate. Written out, so that a change of the machine is a change here too.
OPERATION_GRID = """
                scheduled    backing_off  started    succeeded  failed  canceled  timed_out
dispatch        scheduled    scheduled    scheduled  .          .       .         .
block           scheduled    scheduled    scheduled  .          .       .         .
start           started      .            =          =          =       =         =
retry           backing_off  =            backing_off  =        =       =         =
lose            scheduled    .            scheduled  =          =       =         =
exhaust         failed       failed       failed     =          =       =         =
succeed         succeeded    succeeded    succeeded  =          .       .         .
fail            failed       failed       failed     .          =       .         .
cancel          canceled     canceled     canceled   .          .       =         .
withdraw        canceled     canceled     .          =          =       =         =
request_cancel  scheduled    backing_off  started    =          =       =         =
suspend         .            .            started    =          =       =         =
time_out        timed_out    timed_out    timed_out  =          =       =         =
"""
DELIVERY_GRID = """
           none  due        leased     delivered  dead       dropped
owe        due   =          =          =          =          due
lease      .     leased     leased     .          .          .
deliver    .     delivered  delivered  =          delivered  =
defer      .     =          due        =          =          =
bury       .     .          dead       =          =          =
drop       =     dropped    dropped    =          =          =
redeliver  .     =          =          due        due        .
"""
LIVE = [state for state in State if not state.terminal]

PROBE = """
local function test_step(keys, argv)
  if argv[1] == 'operation' then
    local op = { [H.state] = tonumber(argv[2]) }
    return { apply(op, argv[3]) or 'illegal', op[H.state] }
  end
  local op = { [H.callback] = tonumber(argv[2]) }
  return { apply_delivery(op, 'callback', argv[3]) or 'illegal', op[H.callback] }
end
redis.register_function{function_name='test_step', callback=test_step}
"""


def grid(text: str) -> dict[tuple[str, str], str]:
    """(state, event) -> the cell's word."""
    head, *rows = [line.split() for line in text.strip().splitlines()]
    return {(state, row[0]): cell for row in rows for state, cell in zip(head, row[1:], strict=True)}


def word(cell: Cell | None) -> str:
    return "." if cell is None else cell.to.name.lower() if isinstance(cell, Move) else "="


@pytest.fixture
async def probed(link: Link) -> AsyncIterator[Link]:
    """The library with a door to its two tables; the product's own is put back."""
    await link.call("FUNCTION", "LOAD", "REPLACE", source() + PROBE)
    yield link
    await load_library(link.call)


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_operation_grid(state: State, event: Event) -> None:
    expected = grid(OPERATION_GRID)[state.word, event]
    assert word(OPERATION[state].get(event)) == expected
    after = step(state, event)
    assert ("." if after is None else "=" if after is state and expected == "=" else after.word) == expected


@pytest.mark.parametrize(("state", "event"), list(product(Delivery, DeliveryEvent)))
def test_delivery_grid(state: Delivery, event: DeliveryEvent) -> None:
    assert word(DELIVERY[state].get(event)) == grid(DELIVERY_GRID)[state.name.lower(), event]


@pytest.mark.parametrize(
    ("machine", "states", "table"),
    [("operation", State, OPERATION_GRID), ("delivery", Delivery, DELIVERY_GRID)],
)
async def test_lua_walks_the_same_grid(probed: Link, machine: str, states: type[IntEnum], table: str) -> None:
    """The tables that the store uses are the ones written out above, cell by cell."""
    for (name, event), expected in grid(table).items():
        state = states[name.upper()]
        verdict, after = await probed.call("FCALL", "test_step", 0, machine, state.value, event)
        if expected == ".":
            assert (verdict, after) == (b"illegal", state), (name, event)
        elif expected == "=":
            assert (verdict, after) == (b"same", state), (name, event)
        else:
            assert (verdict, after) == (b"moved", states[expected.upper()]), (name, event)


async def test_lua_knows_no_other_states_and_events(probed: Link) -> None:
    """An unknown event is illegal in every state; an unknown state is an error, not a silent no."""
    for machine, state in product(("operation", "delivery"), (1, 3)):
        assert await probed.call("FCALL", "test_step", 0, machine, state, "explode") == [b"illegal", state]
    with pytest.raises(Exception, match="nil"):
        await probed.call("FCALL", "test_step", 0, "operation", 99, "succeed")


@pytest.mark.parametrize("state", [state for state in State if state.terminal])
def test_nothing_leaves_a_terminal_state(state: State) -> None:
    """I14: no event has a move there."""
    assert not [event for event, cell in OPERATION[state].items() if isinstance(cell, Move)]


@pytest.mark.parametrize("state", LIVE)
def test_every_live_state_can_reach_every_end(state: State) -> None:
    """Whatever happens to it, an operation can be completed, fail, be canceled and time out from where it is."""
    ends = {cell.to for cell in OPERATION[state].values() if isinstance(cell, Move) and State(cell.to).terminal}
    assert ends == {end for end in State if end.terminal}


@pytest.mark.parametrize(("enum", "numbers"), [
    (State, {"SCHEDULED": 1, "BACKING_OFF": 2, "STARTED": 3, "SUCCEEDED": 4, "FAILED": 5, "CANCELED": 6,
             "TIMED_OUT": 7}),
    (Delivery, {"NONE": 0, "DUE": 1, "LEASED": 2, "DELIVERED": 3, "DEAD": 4, "DROPPED": 5}),
])  # fmt: skip
def test_numbers_are_stored_and_never_move(enum: type[IntEnum], numbers: dict[str, int]) -> None:
    assert {member.name: member.value for member in enum} == numbers


def test_words_on_the_wire() -> None:
    """P34, P65: /v1 has seven words, Nexus four; a timed out operation reads as failed there."""
    assert [state.word for state in State] == [
        "scheduled", "backing_off", "started", "succeeded", "failed", "canceled", "timed_out"
    ]  # fmt: skip
    assert [state.nexus for state in State] == [
        "running", "running", "running", "succeeded", "failed", "canceled", "failed"
    ]  # fmt: skip
    assert [delivery.word for delivery in Delivery] == ["none", "pending", "in_flight", "delivered", "dead", "dropped"]


def test_the_tables_cover_all_states_and_only_known_events() -> None:
    for table, states, known in ((OPERATION, State, Event), (DELIVERY, Delivery, DeliveryEvent)):
        assert set(table) == set(states)
        used: set[StrEnum] = {event for row in table.values() for event in row}
        assert used == set(known)


@pytest.mark.parametrize(
    ("name", "made_by", "text"),
    [
        ("machines.md", "from mesh.machine import render; print(render(), end='')", render()),
        (
            "events.schema.json",
            "import json; from mesh.events import schema; print(json.dumps(schema(), indent=2))",
            json.dumps(events.schema(), indent=2) + "\n",
        ),
    ],
)
def test_generated_pages_are_current(name: str, made_by: str, text: str) -> None:
    assert (SPECS / name).read_text() == text, f'stale; run: python -c "{made_by}" > specs/{name}'
