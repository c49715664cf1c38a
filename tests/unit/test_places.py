"""P317: how the places of checks are shared."""

from __future__ import annotations

from gateway.places import Places


def taken(places: Places, owner: str, endpoint: str) -> int:
    """How many it gets that takes all it can."""
    count = 0
    while places.take(owner, endpoint):
        count += 1
    return count


def test_nobody_takes_the_places_of_all_others() -> None:
    """P317: neither one endpoint those of its namespace, nor one namespace those of the others."""
    places = Places(192)
    assert taken(places, "red", "greedy") == 64
    assert taken(places, "red", "second") > 8
    assert sum(taken(places, "red", f"one-{number}") for number in range(100)) < 32
    assert taken(places, "blue", "of blue") > 24
    for number in range(3):
        assert taken(places, f"hostile-{number}", f"of {number}") > 8
    assert places.take("late", "of late")


def test_a_place_given_back_is_there_again() -> None:
    """P317: nothing is kept of who holds none."""
    places = Places(2)
    assert places.take("red", "a")
    assert not places.take("red", "a")
    places.give_back("red", "a")
    assert places.idle
    assert places.take("red", "a")
