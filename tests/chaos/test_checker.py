"""The checker bites: a sound run passes, and a run with one thing wrong breaks the invariant that says so.

The breaches are in breaches.py, breaches_runs.py and breaches_store.py, at least one per rule: a rule that cannot fail
would be a defect.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.events import EventKind
from mesh.ids import operation_id
from mesh.machine import State
from mesh.store.functions import load_library
from mesh.store.layout import Entry, Outcome, Request
from mesh.store.link import Link
from mesh.store.store import Store
from mesh.store.verbs import Start
from tests.chaos import breaches_runs, breaches_store
from tests.chaos.breaches import CASES, Break
from tests.chaos.breaches_runs import ended
from tests.chaos.breaches_store import callback_is_never_sent, held
from tests.chaos.checker import check
from tests.chaos.history import Kind, Recorder, What, digest, read
from tests.chaos.snapshot import take
from tests.chaos.view import RULES, Promise
from tests.chaos.world import OP, World

PROMISE = Promise(calls_min=1)
ROOMS = (breaches_runs, breaches_store)
"""Imported for what they put into the table."""


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

    def test_an_agent_that_came_back_may_get_the_attempt_that_its_death_cut_off(self) -> None:
        world = World()
        again = world.line(What.INVOKED, Kind.INFO)
        world.info(What.INVOKED, "worker-a.2", op=OP, run=1, attempt=1, input=again.input, request_id=again.request_id)
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
