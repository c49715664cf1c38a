"""The store's library as it is put together: its names stand for what they say, and wrong ones are found."""

from __future__ import annotations

import re
from importlib.resources import files

import msgspec
import pytest

from mesh.events import EventKind
from mesh.machine import Delivery, State
from mesh.store.keys import CHANNELS, SUFFIXES
from mesh.store.layout import HEAD, HEAD_DEFAULTS, HEAD_TYPES, TIMES, Head, decode_head
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
    created, events, *required = msgspec.structs.fields(Head)[: len(HEAD) - len(HEAD_DEFAULTS)]
    assert (created.name, events.name) == ("created_at", "events")
    least = [0 if field.type is int else "" for field in required]
    decoded = msgspec.structs.astuple(decode_head(msgspec.msgpack.encode([1, "", *least])))
    assert decoded == (1, msgspec.Raw(b"\xa0"), *least, *HEAD_DEFAULTS)


@pytest.mark.parametrize(("packed", "at_ms"), [(0, 0), (1, 1_000), (2, 1_001), (-1, 999), (-1_000, 0)])
def test_times_are_counted_from_the_acceptance(packed: int, at_ms: int) -> None:
    fields = [1_000 if name == "created_at" else packed if name in TIMES else "" if kind is not int else 0
              for name, kind in zip(HEAD, HEAD_TYPES, strict=True)]  # fmt: skip
    head = decode_head(msgspec.msgpack.encode(fields))
    assert {getattr(head, name) for name in TIMES} == {at_ms}
    assert head.created_at == 1_000
