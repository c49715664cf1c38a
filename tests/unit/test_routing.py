"""Who takes the next request, by virtual time: suspicion, breaker, leases, choice. The clock is a number."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh import ids
from mesh.store.verbs import EndpointRow
from registry.catalog import Catalog
from registry.endpoint import Endpoint, compile_endpoint
from registry.health import SUSPECT_MS_MAX, SUSPECT_MS_MIN, BreakerState, Health, Reach
from registry.instances import FOREVER_MS, UNCONFIRMED_MS, Instance, Roster, StoreTime
from registry.policy import BreakerPolicy, Policy
from registry.routing import CAPACITY, Outcome, Router


class Clock:
    """Local milliseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now

    def pass_(self, ms: int) -> None:
        self.now += ms


class World:
    """A router over rosters that the test writes; nothing reads a store."""

    def __init__(self, **breaker: int) -> None:
        self.clock = Clock()
        self.catalog = Catalog(cast("Any", None), time=StoreTime(self.clock))
        self.router = Router(self.catalog)
        self.endpoint = endpoint(BreakerPolicy(**breaker))

    def has(self, *instances: Instance) -> None:
        self.catalog.instances._rosters[self.endpoint.id] = Roster(instances)  # pyright: ignore[reportPrivateUsage]

    def instance(
        self, name: str, *, weight: int = 1, lease_ms: int = FOREVER_MS, draining: bool = False, since_ms: int = 0
    ) -> Instance:
        end = FOREVER_MS if lease_ms == FOREVER_MS else self.clock.now + lease_ms
        return Instance(name, f"http://{name}:1", "", weight, 5_000, since_ms, draining, end, self.clock.now, Reach())

    def admit(self) -> Instance | str:
        return self.router.admit(self.endpoint)

    def taken(self) -> Instance:
        found = self.admit()
        assert isinstance(found, Instance), found
        return found

    def settle(self, instance: Instance, outcome: Outcome) -> None:
        self.router.settle(self.endpoint, instance, outcome)

    def call(self, outcome: Outcome) -> None:
        self.settle(self.taken(), outcome)


def endpoint(breaker: BreakerPolicy) -> Endpoint:
    document = b'{"policy":' + Policy(breaker=breaker).model_dump_json().encode() + b"}"
    return compile_endpoint(EndpointRow("ep-1", "name", "team", 1, False, 0, 0, 0, 0, document))


class TestChoice:
    def test_nobody_registered(self) -> None:
        world = World()
        assert (world.admit(), world.router.hindrance(world.endpoint)) == ("no_instance", "no_instance")
        assert world.router.capacity(world.endpoint) == 0
        assert world.router.choose(world.endpoint) is None

    def test_the_less_busy_of_two_gets_the_next(self) -> None:
        world = World()
        world.has(*[world.instance(f"i{n}") for n in range(4)])
        taken = Counter(world.taken().id for _ in range(400))
        assert max(taken.values()) - min(taken.values()) <= 8  # picked at random alone it would be 40

    def test_weights_share_the_work_of_idle_instances(self) -> None:
        world = World()
        world.has(world.instance("light", weight=1), world.instance("heavy", weight=9))
        taken: Counter[str] = Counter()
        for _ in range(2_000):
            chosen = world.taken()
            taken[chosen.id] += 1
            world.settle(chosen, Outcome.OK)
        assert 1_650 < taken["heavy"] < 1_950

    def test_in_flight_is_counted_down_whatever_the_outcome(self) -> None:
        world = World(failures=0)
        world.has(world.instance("a"))
        for outcome in Outcome:
            chosen = world.taken()
            assert chosen.reach.in_flight == 1
            world.settle(chosen, outcome)
            assert chosen.reach.in_flight == 0
            world.clock.pass_(SUSPECT_MS_MAX)

    def test_an_instance_that_drains_gets_nothing_and_is_still_told_of_cancels(self) -> None:
        world = World()
        world.has(world.instance("a", draining=True))
        assert world.admit() == "no_instance"
        assert [one.id for one in world.router.every(world.endpoint)] == ["a"]
        assert world.router.view(world.endpoint).judgement.health is Health.DRAINING


class TestLeases:
    def test_it_leaves_the_rotation_when_its_lease_ends_unrenewed(self) -> None:
        """The known end is not the end: another gateway may have heard the heartbeat, so the store is asked first."""
        world = World()
        world.has(world.instance("a", lease_ms=5_000))
        world.clock.pass_(5_000 + UNCONFIRMED_MS - 1)
        assert isinstance(world.admit(), Instance)
        world.clock.pass_(1)
        assert world.admit() == "no_instance"
        judged = world.router.view(world.endpoint).judgement
        assert (judged.health, "no heartbeat" in judged.why) == (Health.OFFLINE, True)

    def test_a_read_after_the_end_needs_no_patience(self) -> None:
        world = World()
        world.has(world.instance("a", lease_ms=-1))
        assert world.admit() == "no_instance"

    def test_the_store_is_asked_before_the_lease_ends(self) -> None:
        world = World()
        one = world.instance("a", lease_ms=5_000)
        assert world.clock.now < one.read_next_ms < one.lease_end_ms

    def test_others_go_on(self) -> None:
        world = World()
        world.has(world.instance("a", lease_ms=1_000), world.instance("b", lease_ms=60_000))
        world.clock.pass_(30_000)
        assert {world.taken().id for _ in range(20)} == {"b"}
        view = world.router.view(world.endpoint)
        assert view.judgement.health is Health.HEALTHY
        assert {one.id: judged.health for one, judged in view.instances} == {"a": Health.OFFLINE, "b": Health.HEALTHY}


class TestSuspicion:
    def test_an_unreachable_instance_rests_and_the_rest_doubles(self) -> None:
        world = World()
        world.has(world.instance("a"))
        rests: list[int] = []
        for _ in range(7):
            world.call(Outcome.UNREACHABLE)
            begun = world.clock.now
            while world.admit() == "unreachable":
                world.clock.pass_(1)
            world.settle(world.router.every(world.endpoint)[0], Outcome.NEUTRAL)  # what the loop admitted
            rests.append(world.clock.now - begun)
        assert rests == [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]

    def test_what_was_under_way_together_counts_once(self) -> None:
        world = World()
        world.has(world.instance("a"))
        together = [world.taken() for _ in range(50)]
        for one in together:
            world.settle(one, Outcome.UNREACHABLE)
        world.clock.pass_(SUSPECT_MS_MIN)
        assert isinstance(world.admit(), Instance)

    @pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.FAILED])
    def test_an_answer_of_any_kind_ends_suspicion(self, outcome: Outcome) -> None:
        world = World()
        world.has(world.instance("a"))
        world.call(Outcome.UNREACHABLE)
        world.clock.pass_(SUSPECT_MS_MIN)
        assert world.router.view(world.endpoint).judgement.health is Health.SUSPECT
        world.call(outcome)
        assert world.router.view(world.endpoint).judgement.health is Health.HEALTHY
        world.call(Outcome.UNREACHABLE)
        world.clock.pass_(SUSPECT_MS_MIN)
        assert isinstance(world.admit(), Instance)

    def test_unreachable_says_nothing_of_the_handler(self) -> None:
        world = World(failures=1)
        world.has(world.instance("a"))
        world.call(Outcome.UNREACHABLE)
        assert world.router.view(world.endpoint).breaker is BreakerState.CLOSED

    def test_the_others_take_over(self) -> None:
        world = World()
        world.has(world.instance("a"), world.instance("b"))
        lost = world.taken()
        world.settle(lost, Outcome.UNREACHABLE)
        assert {world.taken().id for _ in range(20)} == {"a", "b"} - {lost.id}


class TestBreaker:
    def test_it_opens_after_failures_in_a_row(self) -> None:
        world = World(failures=3, open_ms=5_000)
        world.has(world.instance("a"))
        for outcome in (Outcome.FAILED, Outcome.FAILED, Outcome.OK, Outcome.FAILED, Outcome.FAILED):
            world.call(outcome)
        assert world.router.hindrance(world.endpoint) == ""
        world.call(Outcome.FAILED)
        assert (world.admit(), world.router.hindrance(world.endpoint)) == ("breaker", "breaker")
        view = world.router.view(world.endpoint)
        assert (view.judgement.health, view.failures) == (Health.SUSPECT, 3)

    def test_one_probe_decides(self) -> None:
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.clock.pass_(1_000)
        assert world.router.capacity(world.endpoint) == 1
        probe = world.taken()
        assert (world.admit(), world.router.capacity(world.endpoint)) == ("breaker", 0)
        world.settle(probe, Outcome.OK)
        assert world.router.capacity(world.endpoint) == CAPACITY

    def test_looking_takes_no_probe(self) -> None:
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.clock.pass_(1_000)
        for _ in range(3):
            assert world.router.hindrance(world.endpoint) == ""
            assert world.router.choose(world.endpoint) is not None
        world.taken()

    def test_the_rest_doubles_up_to_a_minute(self) -> None:
        world = World(failures=1, open_ms=5_000)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        rests: list[int] = []
        for _ in range(6):
            begun = world.clock.now
            while world.router.hindrance(world.endpoint):
                world.clock.pass_(100)
            rests.append(world.clock.now - begun)
            world.call(Outcome.FAILED)
        assert rests == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]

    @pytest.mark.parametrize("outcome", [Outcome.NEUTRAL, Outcome.UNREACHABLE])
    def test_a_probe_that_never_arrived_is_sent_again(self, outcome: Outcome) -> None:
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.clock.pass_(1_000)
        world.call(outcome)
        world.clock.pass_(SUSPECT_MS_MIN)
        assert world.router.capacity(world.endpoint) == 1

    def test_old_news_does_not_decide_for_the_probe(self) -> None:
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        early, late = world.taken(), world.taken()
        world.call(Outcome.FAILED)
        world.settle(early, Outcome.OK)
        assert world.admit() == "breaker"
        world.clock.pass_(1_000)
        probe = world.taken()
        world.settle(late, Outcome.FAILED)
        world.settle(probe, Outcome.OK)
        assert world.router.hindrance(world.endpoint) == ""

    def test_a_policy_without_breaker_closes_it(self) -> None:
        world = World(failures=1)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        assert world.admit() == "breaker"
        world.endpoint = endpoint(BreakerPolicy(failures=0))
        for _ in range(20):
            world.call(Outcome.FAILED)

    def test_a_probe_of_an_earlier_rest_decides_nothing(self) -> None:
        """Its breaker was closed by a change of policy while it was out."""
        world = World(failures=1, open_ms=1_000)
        strict = world.endpoint
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.clock.pass_(1_000)
        early = world.taken()
        world.endpoint = endpoint(BreakerPolicy(failures=0))
        world.call(Outcome.OK)
        world.endpoint = strict
        world.call(Outcome.FAILED)
        world.settle(early, Outcome.OK)
        assert world.admit() == "breaker"


class TestArrivals:
    """P117: who has just registered starts with a clean slate."""

    def rests(self) -> World:
        world = World(failures=2, open_ms=60_000)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.call(Outcome.FAILED)
        assert world.admit() == "breaker"
        return world

    def test_a_new_instance_closes_the_breaker(self) -> None:
        world = self.rests()
        world.has(world.instance("a"), world.instance("b"))
        assert world.router.hindrance(world.endpoint) == ""
        view = world.router.view(world.endpoint)
        assert (view.breaker, view.failures, view.open_ms) == (BreakerState.CLOSED, 0, 0)

    def test_one_that_registers_anew_closes_it(self) -> None:
        world = self.rests()
        world.has(world.instance("a", since_ms=7))
        assert world.router.capacity(world.endpoint) == CAPACITY

    def test_one_that_was_offline_closes_it(self) -> None:
        world = World(failures=1, open_ms=60_000)
        world.has(world.instance("a", lease_ms=1_000))
        world.call(Outcome.FAILED)
        world.clock.pass_(10_000)
        assert world.admit() == "no_instance"
        world.has(world.instance("a", lease_ms=1_000, since_ms=world.clock.now))
        world.taken()

    @pytest.mark.parametrize("draining", [True, False])
    def test_a_renewed_lease_and_a_drained_one_do_not(self, draining: bool) -> None:
        world = self.rests()
        world.has(world.instance("a"), *([world.instance("b", draining=True, since_ms=7)] if draining else []))
        assert world.router.hindrance(world.endpoint) == "breaker"

    def test_what_failed_before_is_forgotten_too(self) -> None:
        world = World(failures=2)
        world.has(world.instance("a"))
        world.call(Outcome.FAILED)
        world.has(world.instance("a", since_ms=7))
        world.call(Outcome.FAILED)
        assert world.router.hindrance(world.endpoint) == ""

    def test_requests_to_the_process_before_it_say_nothing_of_it(self) -> None:
        """Those that were under way when it was killed fail one by one afterwards."""
        world = World(failures=2)
        world.has(world.instance("a"))
        old = [world.taken() for _ in range(8)]
        world.has(world.instance("a", since_ms=7))
        for one in old:
            world.settle(one, Outcome.FAILED)
        assert world.router.hindrance(world.endpoint) == ""
        world.call(Outcome.FAILED)
        world.call(Outcome.FAILED)
        assert world.router.hindrance(world.endpoint) == "breaker"


class TestProbes:
    def test_what_may_not_probe_is_refused_until_the_breaker_closed(self) -> None:
        """P116."""
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        assert not world.router.probing(world.endpoint)
        world.call(Outcome.FAILED)
        world.clock.pass_(1_000)
        assert world.router.probing(world.endpoint)
        assert world.router.admit(world.endpoint, may_probe=False) == "breaker"
        world.call(Outcome.OK)
        assert not world.router.probing(world.endpoint)
        assert isinstance(world.router.admit(world.endpoint, may_probe=False), Instance)

    def test_people_see_since_when_how_often_and_how_long(self) -> None:
        world = World(failures=1, open_ms=1_000)
        world.has(world.instance("a"))
        wall = world.catalog.time.wall

        def seen() -> tuple[BreakerState, int, int, int, int]:
            view = world.router.view(world.endpoint)
            return view.breaker, view.since_ms, view.failures, view.open_ms, view.retry_at_ms

        assert seen() == (BreakerState.CLOSED, 0, 0, 0, 0)
        opened = world.clock.now
        world.call(Outcome.FAILED)
        assert seen() == (BreakerState.OPEN, wall(opened), 1, 1_000, wall(opened + 1_000))
        world.clock.pass_(1_000)
        assert seen() == (BreakerState.HALF_OPEN, wall(opened), 1, 1_000, 0)
        world.call(Outcome.FAILED)
        assert seen() == (BreakerState.OPEN, wall(opened), 2, 2_000, wall(opened + 3_000))
        world.clock.pass_(2_000)
        world.call(Outcome.OK)
        assert seen() == (BreakerState.CLOSED, wall(opened + 3_000), 0, 0, 0)


class RouterMachine(RuleBasedStateMachine):
    """Any order of admits, outcomes and time, against a model that is told in one paragraph.

    The model: closed until `failures` FAILED in a row among those admitted while closed; then open for a rest; then one
    probe at a time, whose FAILED doubles the rest and whose OK closes.
    """

    FAILURES, OPEN_MS = 3, 1_000

    def __init__(self) -> None:
        super().__init__()
        # The same choices in every run, or a failing example could not be repeated.
        self.chance, ids._chance = ids._chance, Random(7)  # pyright: ignore[reportPrivateUsage]
        self.world = World(failures=self.FAILURES, open_ms=self.OPEN_MS)
        self.world.has(self.world.instance("a"), self.world.instance("b"))
        self.out: list[Instance] = []
        self.in_a_row = 0
        self.rest_ms = 0
        self.closed_again_at = 0
        self.probe: Instance | None = None

    def teardown(self) -> None:
        ids._chance = self.chance  # pyright: ignore[reportPrivateUsage]

    @property
    def open(self) -> bool:
        return self.rest_ms > 0

    def expected(self) -> str:
        now = self.world.clock.now
        instances = self.world.router.every(self.world.endpoint)
        if all(now < one.reach.until_ms for one in instances):
            return "unreachable"
        if self.open and (now < self.closed_again_at or self.probe is not None):
            return "breaker"
        return ""

    @rule()
    def admit(self) -> None:
        expected = self.expected()
        found = self.world.admit()
        if expected:
            assert found == expected
            return
        assert isinstance(found, Instance)
        assert self.world.clock.now >= found.reach.until_ms
        assert bool(found.probe) == self.open
        if self.open:
            self.probe = found
        self.out.append(found)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 1_000), outcome=st.sampled_from(Outcome))
    def settle(self, which: int, outcome: Outcome) -> None:
        one = self.out.pop(which % len(self.out))
        now = self.world.clock.now
        self.world.settle(one, outcome)
        if one is self.probe:
            self.probe = None
            if outcome is Outcome.OK:
                self.rest_ms = self.in_a_row = 0
            elif outcome is Outcome.FAILED:
                self.rest_ms = min(self.rest_ms * 2, 60_000)
                self.closed_again_at = now + self.rest_ms
        elif not self.open:
            if outcome is Outcome.OK:
                self.in_a_row = 0
            elif outcome is Outcome.FAILED:
                self.in_a_row += 1
                if self.in_a_row == self.FAILURES:
                    self.rest_ms = self.OPEN_MS
                    self.closed_again_at = now + self.OPEN_MS

    @rule(ms=st.one_of(st.integers(0, 600), st.integers(0, 70_000)))
    def time_passes(self, ms: int) -> None:
        self.world.clock.pass_(ms)

    @invariant()
    def what_is_shown_is_what_happens(self) -> None:
        world = self.world
        expected = self.expected()
        assert world.router.hindrance(world.endpoint) == expected
        capacity = world.router.capacity(world.endpoint)
        assert capacity == (0 if expected else 1 if self.open else CAPACITY)

    @invariant()
    def every_request_under_way_is_counted_once(self) -> None:
        counted = sum(one.reach.in_flight for one in self.world.router.every(self.world.endpoint))
        assert counted == len(self.out)

    @invariant()
    def no_rest_is_longer_than_its_cap(self) -> None:
        for one in self.world.router.every(self.world.endpoint):
            assert one.reach.until_ms - self.world.clock.now <= SUSPECT_MS_MAX


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
