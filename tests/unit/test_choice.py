"""Who is chosen, by virtual time: versions by shares, the less loaded for its weight, failing ones left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mesh.store.verbs import Check, Share
from registry.choice import divide
from registry.health import FAILED_ROW, SUSPECT_MS_MIN, Health
from registry.instance import Drain, Instance, flapping
from registry.policy import Flapping
from registry.routing import Outcome
from tests.unit.test_routing import World


def of(world: World, name: str, version: str = "", *, weight: int = 1) -> Instance:
    return replace(world.instance(name, weight=weight), version=version)


def failing(why: str) -> dict[str, Check]:
    return {"probe": Check(True, 0, 0, 0, why)}


def admitted(world: World, count: int, pin: str = "") -> Counter[str]:
    taken: Counter[str] = Counter()
    for _ in range(count):
        chosen = world.router.admit(world.endpoint, pin)
        taken[chosen if isinstance(chosen, str) else chosen.id] += 1
        if isinstance(chosen, Instance):
            world.settle(chosen, Outcome.OK)
    return taken


class TestRotation:
    def test_who_fails_alone_rests_while_others_are_there(self) -> None:
        """P308: after its rest one request tries it, and the rest doubles, or is over."""
        world = World(failures=0)
        bad, good = of(world, "bad"), of(world, "good")
        world.has(bad, good)
        for _ in range(FAILED_ROW):
            bad.reach.in_flight += 1
            world.settle(bad, Outcome.FAILED)
        assert admitted(world, 50) == {"good": 50}
        judged = {one.id: judged for one, judged in world.router.view(world.endpoint).instances}["bad"]
        assert (judged.health, judged.why) == (Health.SUSPECT, "its last 3 requests got no answer")
        world.clock.pass_(SUSPECT_MS_MIN)
        assert admitted(world, 50)["bad"] > 0
        assert {judged.health for _, judged in world.router.view(world.endpoint).instances} == {Health.HEALTHY}

    def test_the_only_one_gets_work_whatever_is_thought_of_it(self) -> None:
        """P304."""
        world = World(failures=0)
        world.has(replace(of(world, "a"), checks=failing("no answer")))
        assert admitted(world, 3) == {"a": 3}
        world.has(replace(of(world, "a"), checks=failing("no answer")), of(world, "b"))
        assert admitted(world, 20) == {"b": 20}

    def test_load_counts_for_the_weight(self) -> None:
        """P308: nine times the weight carries nine times the requests."""
        world = World(failures=0)
        light, heavy = of(world, "light"), of(world, "heavy", weight=9)
        world.has(light, heavy)
        for _ in range(400):
            world.taken()
        assert 30 <= light.reach.in_flight <= 50

    @pytest.mark.parametrize(
        ("change", "health", "why"),
        [
            ({}, Health.HEALTHY, "its lease is kept up"),
            ({"checks": failing("no answer")}, Health.SUSPECT, "its probe fails: no answer"),
            ({"flapping": ("it came and went", 7, 1 << 40)}, Health.SUSPECT, "it came and went"),
            ({"draining": True, "drain": Drain("it was told to drain", 5, told=True), "checks": failing("x")},
             Health.DRAINING, "it was told to drain"),
            ({"lease_end_ms": 0, "checks": failing("x")}, Health.OFFLINE, "no heartbeat for its ttl of 5000 ms"),
        ],
    )  # fmt: skip
    def test_what_is_shown_of_an_instance(self, change: dict[str, object], health: Health, why: str) -> None:
        """P301: the worst that is known of it."""
        world = World()
        one = replace(of(world, "a"), **change)  # pyright: ignore[reportArgumentType]
        judged = one.judge(world.clock.now, world.catalog.time)
        assert (judged.health, judged.why) == (health, why)

    def test_a_store_that_is_away_ends_no_lease(self) -> None:
        """P300: nobody could ask whether it was renewed."""
        world = World()
        world.has(world.instance("a", lease_ms=1_000))
        world.clock.pass_(10_000)
        assert world.admit() == "no_instance"
        world.catalog.time.blind = True
        world.has(world.instance("a", lease_ms=1_000))
        world.clock.pass_(10_000)
        assert isinstance(world.admit(), Instance)


class TestVersions:
    def test_percents_first_then_weights(self) -> None:
        """P310."""
        weights = {"1": 3, "2": 1, "3": 5}
        assert divide(weights, {}) == {"1": 33_333, "2": 11_111, "3": 55_556}
        assert divide(weights, {"3": Share(percent=10)}) == {"3": 10_000, "1": 67_500, "2": 22_500}
        assert divide(weights, {"3": Share(percent=0), "1": Share(weight=1)}) == {"3": 0, "1": 50_000, "2": 50_000}
        assert divide({"3": 5}, {"3": Share(percent=10)}) == {"3": 10_000}, "alone it takes all"

    def test_a_canary_share_is_its_share_of_the_requests(self) -> None:
        """P310."""
        world = World()
        shares = {"2": Share(percent=20)}
        world.endpoint = replace(world.endpoint, shares=shares)
        world.has(*[of(world, f"a{n}", "1") for n in range(8)], of(world, "b", "2"))
        assert 320 < admitted(world, 2_000)["b"] < 480

    def test_a_pin_is_kept_and_waits_where_nobody_lives(self) -> None:
        """P312: also when its version takes no other work."""
        world = World()
        world.endpoint = replace(world.endpoint, shares={"2": Share(percent=0)})
        world.has(of(world, "a", "1"), of(world, "b", "2"), replace(of(world, "c", "3"), draining=True))
        assert admitted(world, 9) == {"a": 9}
        assert admitted(world, 9, "v2") == {"b": 9}
        assert admitted(world, 1, "v3") == {"no_version": 1}
        assert world.router.hindrance(world.endpoint, "v4") == "no_version"
        assert world.router.capacity(world.endpoint, "v4") == 0 < world.router.capacity(world.endpoint, "v2")

    def test_a_canary_goes_to_its_instance_whatever_is_thought_of_it(self) -> None:
        """P306: and what comes of it moves no breaker."""
        world = World(failures=1)
        world.has(replace(of(world, "a"), checks=failing("x")), of(world, "b"))
        chosen = world.router.admit(world.endpoint, "ca")
        assert isinstance(chosen, Instance)
        assert (chosen.id, chosen.canary) == ("a", True)
        world.settle(chosen, Outcome.FAILED)
        assert world.router.view(world.endpoint).breaker == "closed"


@pytest.mark.parametrize(
    ("arrivals", "until"),
    [
        ([], None), ([0, 10], None), ([0, 10, 20], 120), ([0, 90, 200], None), ([0, 10, 20, 500], None),
        ([0, 1, 2, 90], 190),
    ],
)  # fmt: skip
def test_who_comes_and_goes(arrivals: list[int], until: int | None) -> None:
    """P305: three arrivals within the time; over when it stayed for as long."""
    world = World()
    world.catalog.time.heard(world.clock.now)  # the store's clock is the local one
    policy = Flapping.model_construct(arrivals=3, within_ms=100)
    found = flapping(arrivals, policy, world.catalog.time)
    assert (found[2] if found else None) == until
