"""The engine's pure parts: what is sent next, what is found, when an attempt goes. No loop, no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from mesh.agent.codec import Codec
from mesh.agent.durable import replay as replays
from mesh.agent.durable.entries import (
    ENTRY_BYTES_MAX,
    Entry,
    check_name,
    fingerprint,
    head_of,
    pack,
    read,
    unpack,
    write,
)
from mesh.agent.durable.errors import JournalMismatch
from mesh.agent.durable.ledger import APPEND_ENTRIES_MAX, PAGE_ENTRIES_MAX, Append, Ledger, Pending, Read
from mesh.agent.durable.parking import Busy, Parking, Rest, Suspend
from mesh.agent.durable.replay import Replay
from mesh.errors import ConfigError, TooLarge


def raw(kind: str, name: str = "", n: int = 1, **fields: Any) -> bytes:
    return json.dumps({"kind": kind, "name": name, "n": n, **fields}).encode()


def step(name: str, n: int = 1, result: Any = None, **fields: Any) -> bytes:
    return raw("step", name, n, result=result, **fields)


class Log:
    """Pendings that write down what became of them."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []

    def pending(self, name: str, after_chunks: int = 0, size: int = 0) -> Pending:
        body = raw("step", name, data="x" * size)
        return Pending("step", f"{name}#1", body, after_chunks, lambda answer: self.done.append((name, answer)))


class TestLedger:
    def test_a_fresh_journal_is_written_without_being_read(self) -> None:
        log, ledger = Log(), Ledger(0)
        ledger.append(log.pending("a"))
        assert ledger.next(0) == Append(0, (log.pending("a").raw,))
        assert ledger.next(0) is None, "one append is out at a time"
        ledger.append(log.pending("b"))
        ledger.append(log.pending("c"))
        assert ledger.appended(1) == 1
        assert log.done == [("a", None)]
        assert ledger.next(0) == Append(1, (log.pending("b").raw, log.pending("c").raw))
        ledger.appended(3)
        assert ledger.next(0) is None
        assert ledger.idle

    def test_a_journal_is_read_before_anything_is_appended(self) -> None:
        log, ledger = Log(), Ledger(3)
        assert ledger.next(0) is None, "nobody asks yet"
        ledger.append(log.pending("d"))
        assert ledger.next(0) == Read(0, PAGE_ENTRIES_MAX)
        page = [step("a"), step("b")]
        ledger.page(page, [head_of(each) for each in page], 3)
        assert ledger.next(0) == Read(2, PAGE_ENTRIES_MAX)
        ledger.page([step("c")], [("step", "c#1")], 3)
        assert ledger.next(0) == Append(3, (log.pending("d").raw,))

    def test_what_others_appended_is_read_first_then_ours_goes_again(self) -> None:
        log, ledger = Log(), Ledger(0)
        ledger.append(log.pending("a"))
        ledger.append(log.pending("b"))
        sent = ledger.next(0)
        ledger.grown(1)
        assert ledger.next(0) == Read(0, PAGE_ENTRIES_MAX)
        ledger.page([raw("child", n=0, key="call#1")], [("child", "call#1")], 1)
        assert isinstance(sent, Append)
        assert ledger.next(0) == Append(1, sent.entries)
        ledger.appended(4)
        assert not ledger.complete, "another one came behind ours"
        assert ledger.next(0) == Read(3, PAGE_ENTRIES_MAX)

    def test_an_entry_that_somebody_recorded_before_counts_instead_of_ours(self) -> None:
        log, ledger = Log(), Ledger(0)
        ledger.append(log.pending("a"))
        ledger.next(0)
        ledger.grown(1)
        assert isinstance(ledger.next(0), Read)
        theirs = step("a", result="theirs")
        ledger.page([theirs], [("step", "a#1")], 1)
        assert log.done == [("a", theirs)]
        assert ledger.next(0) is None

    def test_entries_wait_for_the_chunks_before_them(self) -> None:
        log, ledger = Log(), Ledger(0)
        ledger.append(log.pending("a"))
        ledger.append(log.pending("b", after_chunks=2))
        assert ledger.next(0) == Append(0, (log.pending("a").raw,))
        ledger.appended(1)
        assert ledger.next(1) is None
        assert ledger.next(2) == Append(1, (log.pending("b").raw,))

    def test_appends_are_bounded(self) -> None:
        log, ledger = Log(), Ledger(0)
        for at in range(APPEND_ENTRIES_MAX + 1):
            ledger.append(log.pending(f"s{at}"))
        sent = ledger.next(0)
        assert isinstance(sent, Append)
        assert len(sent.entries) == APPEND_ENTRIES_MAX
        ledger.appended(APPEND_ENTRIES_MAX)
        ledger.append(log.pending("large", size=900_000))
        sent = ledger.next(0)
        assert isinstance(sent, Append)
        assert len(sent.entries) == 2
        ledger.appended(APPEND_ENTRIES_MAX + 2)
        for at in range(2):
            ledger.append(log.pending(f"large{at}", size=600_000))
        sent = ledger.next(0)
        assert isinstance(sent, Append)
        assert len(sent.entries) == 1, "two would be too many bytes"

    def test_what_is_refused_is_told_to_who_sent_it(self) -> None:
        log, ledger = Log(), Ledger(0)
        ledger.append(log.pending("a"))
        ledger.next(0)
        full = TooLarge("full", code="journal_full")
        ledger.refused(full)
        assert log.done == [("a", full)]


class TestReplay:
    def test_entries_are_found_by_name_and_occurrence_in_any_order(self) -> None:
        replay = Replay()
        replay.feed([step("a", 1), step("a", 2), step("b", 1), step("a", 3), step("gather#1/x/late", 1)])
        assert [replay.number("a"), replay.number("a"), replay.number("b")] == [1, 2, 1]
        assert [place.at for place in replay.take("b#1", "step", "a step")] == [2]
        assert [place.at for place in replay.take("a#2", "step", "a step")] == [1]
        assert replay.take("a#2", "step", "a step") == [], "taken is forgotten"
        assert replay.left() == ["a#3"], "a#1 was asked for, if not awaited; sources of a gather need not be"

    def test_a_key_of_another_kind_is_a_mismatch_that_shows_both_sides(self) -> None:
        replay = Replay()
        replay.feed([raw("call", "clone", endpoint="git", service="Git", operation="clone", args='["x"]', id="00-1")])
        with pytest.raises(JournalMismatch, match=r'has a call of git/Git/clone\("x"\); the code now asks for a step'):
            replay.take("clone#1", "step", "a step", '["x"]')

    def test_other_arguments_are_a_mismatch_unless_the_name_alone_decides(self) -> None:
        replay = Replay()
        replay.feed([step("fetch", args='["a"]'), step("fetch", 2, args='["b"]')])
        with pytest.raises(JournalMismatch, match=r'has a step\("a"\); the code now asks for a step\("b"\)') as caught:
            replay.take("fetch#1", "step", "a step", '["b"]')
        assert caught.value.key == "fetch#1"
        assert "match='name'" in caught.value.detail
        assert replay.take("fetch#1", "step", "a step", '["b"]', strict=False)
        assert replay.take("fetch#2", "step", "a step", '["b"]')

    def test_a_call_of_another_operation_is_a_mismatch(self) -> None:
        replay = Replay()
        replay.feed([raw("call", "c", endpoint="a", service="S", operation="o", id="00-1")])
        with pytest.raises(JournalMismatch, match="a call of a/S/o"):
            replay.take("c#1", "call", "a call of b/S/o")

    def test_unknown_kinds_and_garbage_are_passed_over(self) -> None:
        replay = Replay()
        replay.feed([raw("from_the_future", "a"), b"[]", b"no json", step("a")])
        assert [place.at for place in replay.take("a#1", "step", "a step")] == [3]

    def test_entries_beyond_the_bound_keep_their_place_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replays, "RESIDENT_BYTES_MAX", 200)
        replay = Replay()
        replay.feed([step(f"s{at}", result="x" * 100) for at in range(4)])
        kept = [replay.take(f"s{at}#1", "step", "a step")[0].raw is not None for at in range(4)]
        assert kept == [True, False, False, False]
        replay.feed([step("late", result="x" * 100)])
        assert replay.take("late#1", "step", "a step")[0].raw is not None, "what was taken makes room"

    def test_a_childs_end_belongs_to_its_call(self) -> None:
        replay = Replay()
        replay.feed([raw("call", "c", id="00-1", endpoint="e", service="s", operation="o")])
        assert not replay.settled("c#1")
        replay.feed([json.dumps({"kind": "child", "key": "c#1", "state": "succeeded", "result": 1}).encode()])
        assert replay.settled("c#1")
        assert [place.kind for place in replay.take("c#1", "call", "a call of e/s/o")] == ["call", "child"]


class TestParking:
    def test_work_keeps_the_attempt(self) -> None:
        parking = Parking(500)
        assert isinstance(parking.decide(0), Busy), "nothing waits: the code is somewhere else"
        parking.begin()
        place = parking.park(10_000)
        assert parking.decide(0) == Suspend(10_000)
        parking.begin()
        assert isinstance(parking.decide(0), Busy)
        parking.end()
        parking.leave(place)
        assert isinstance(parking.decide(0), Busy)

    def test_a_short_sleep_is_sat_out(self) -> None:
        parking = Parking(500)
        parking.begin()
        place = parking.park(400)
        assert parking.decide(0) == Rest(400)
        parking.leave(place)
        parking.park(None)
        parking.begin()
        parking.park(900)
        assert parking.decide(0) == Rest(500)
        assert parking.decide(500) == Rest(900), "so little is not worth a suspension"

    def test_children_get_a_moment_then_the_attempt_goes_until_the_first_timer(self) -> None:
        parking = Parking(500)
        parking.begin()
        parking.begin()
        parking.park(None)
        parking.park(60_000)
        assert parking.decide(1000) == Rest(1500)
        assert parking.decide(1499) == Rest(1500)
        assert parking.decide(1500) == Suspend(60_000)

    def test_only_children_wake_without_a_time(self) -> None:
        parking = Parking(0)
        parking.begin()
        parking.park(None)
        assert parking.decide(7) == Suspend(None)


class Item(BaseModel):
    name: str


@dataclass
class Point:
    x: int


class TestEntries:
    def test_an_entry_carries_what_it_has_and_no_more(self) -> None:
        entry = Entry("step", "a", 2, tries=1, ms=5)
        for field, value in pack(*Codec(Item).encode(Item(name="b"))).items():
            setattr(entry, field, value)
        assert json.loads(write(entry)) == {
            "kind": "step", "name": "a", "n": 2, "tries": 1, "ms": 5, "result": {"name": "b"},
        }  # fmt: skip
        assert unpack(Codec(Item), read(write(entry))) == Item(name="b")
        assert head_of(write(entry)) == ("step", "a#2")

    def test_bytes_and_nothing_survive(self) -> None:
        entry = Entry("step", "a", 1, **pack(*Codec(bytes).encode(b"\xff\x00")))
        assert unpack(Codec(bytes), read(write(entry))) == b"\xff\x00"
        entry = Entry("step", "a", 1, **pack(*Codec(Any).encode(None)))
        assert unpack(Codec(Any), read(write(entry))) is None

    def test_an_entry_has_a_bound(self) -> None:
        entry = Entry("step", "a", 1, **pack(*Codec(Any).encode("x" * ENTRY_BYTES_MAX)))
        with pytest.raises(TooLarge, match="keep large data outside"):
            write(entry)

    @pytest.mark.parametrize(
        ("args", "kwargs", "text"),
        [
            ((), {}, None),
            (("a", 1), {}, '["a",1]'),
            ((Item(name="x"), Point(3)), {}, '[{"name":"x"},{"x":3}]'),
            (("a",), {"b": 2}, '["a",{"b":2}]'),
            (({"c", "a", "b"},), {}, '[["a","b","c"]]'),
            ((object(),), {}, '["<object>"]'),
            ((b"\xff",), {}, '["_w=="]'),
        ],
    )
    def test_arguments_become_text(self, args: tuple[Any, ...], kwargs: dict[str, Any], text: str | None) -> None:
        assert fingerprint(args, kwargs) == text

    def test_iterators_are_not_used_up(self) -> None:
        numbers = iter([1, 2])
        fingerprint((numbers,), {})
        assert list(numbers) == [1, 2]

    def test_long_arguments_are_told_apart_by_a_digest(self) -> None:
        one, other = fingerprint(("x" * 500 + "a",), {}), fingerprint(("x" * 500 + "b",), {})
        assert one is not None
        assert one != other
        assert len(one) <= 200

    @pytest.mark.parametrize("name", ["", "x" * 201, "a\nb"])
    def test_odd_names_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError):
            check_name(name)
