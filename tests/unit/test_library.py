"""The store's library as it is put together: its names stand for what they say, and wrong ones are found."""

from __future__ import annotations

import re
from importlib.resources import files

import msgspec
import pytest

from mesh.events import EventKind
from mesh.machine import Delivery, State
from mesh.store.keys import CHANNELS, SUFFIXES
from mesh.store.layout import HEAD, HEAD_DEFAULTS, Head, decode_head
from mesh.store.library import FILES, LIMITS, as_loaded, source
from mesh.store.names import RUNTIME, UnknownName

OPERATIONS = ("op", "parent", "earlier", "child")


def place(field: str) -> str:
    return f"[{HEAD.index(field) + 1}]"


def test_names_become_what_they_stand_for() -> None:
    text = "if op.state == S.started and parent.was_owner then f(root .. KEY.due, op.id, LIMIT.put, E.failed, a.run)"
    assert as_loaded("file", text) == (
        f"if op{place('state')} == {int(State.STARTED)} and parent.was_owner then"
        f" f(root .. {SUFFIXES['due']!r}, op.id, {LIMITS['put']}, {int(EventKind.FAILED)}, a.run)"
    )
    leased = as_loaded("file", "earlier.start = D.leased -- its `op.nothing` is a comment")
    assert leased == f"earlier{place('start')} = {int(Delivery.LEASED)}"
    assert as_loaded("file", "h[H.run] + op[H[kind .. '_at']]") == f"h{place('run')} + op[H[kind .. '_at']]"
    assert as_loaded("file", "CHANNEL.pull") == repr(CHANNELS["pull"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("op.stat = 1", "op.stat"),
        ("if child.name then", "child.name"),
        ("op[kind] = D.due", "op[kind]"),
        ("return S.begun", "S.begun"),
        ("h[H.agent]", "H.agent"),
    ],
)
def test_a_name_that_stands_for_nothing_is_found_with_its_place(line: str, told: str) -> None:
    with pytest.raises(UnknownName, match=rf"some\.lua:2: {re.escape(told)}"):
        as_loaded("some", f"local x = 1\n{line}\n")


def test_nothing_of_the_head_and_no_constant_is_looked_up_by_name() -> None:
    text = source()
    assert set(re.findall(rf"\b(?:{'|'.join(OPERATIONS)})\.(\w+)", text)) <= {*RUNTIME}
    assert re.findall(r"(?<![\w.])(?:S|D|E|H|KEY|CHANNEL|LIMIT)\.\w+", text) == []


@pytest.mark.parametrize("name", FILES)
def test_every_line_stays_where_it_is(name: str) -> None:
    text = (files("mesh.store") / "lua" / f"{name}.lua").read_text()
    loaded = as_loaded(name, text)
    assert loaded.count("\n") == text.count("\n")
    assert f"{loaded}\n" in source()


def test_defaults_stand_behind_all_that_must_be_there() -> None:
    """A head may end before them, so they are Lua's as well as msgspec's."""
    assert tuple(field.name for field in msgspec.structs.fields(Head)) == HEAD
    first, *required = msgspec.structs.fields(Head)[: len(HEAD) - len(HEAD_DEFAULTS)]
    assert first.name == "events"
    least = [0 if field.type is int else "" for field in required]
    decoded = msgspec.structs.astuple(decode_head(msgspec.msgpack.encode(["", *least])))
    assert decoded == (msgspec.Raw(b"\xa0"), *least, *HEAD_DEFAULTS)
