"""P410: how the places of what costs much are shared among parties."""

from __future__ import annotations

from gateway.payloads import EACH_STEPS_MAX, STEPS_MAX, STEPS_PART
from mesh.seats import Seats


def taken(seats: Seats, whose: str) -> int:
    """How many it gets that takes all it can."""
    count = 0
    while seats.take(whose):
        count += 1
    return count


def test_a_few_operations_leave_places_for_others() -> None:
    """P410: the first ones get what they may, those after them less, and whoever comes gets one."""
    seats = Seats(STEPS_MAX, EACH_STEPS_MAX, part=STEPS_PART)
    got = [taken(seats, f"operation-{number}") for number in range(12)]
    assert got[:4] == [EACH_STEPS_MAX] * 4
    assert got == sorted(got, reverse=True)
    assert got[-1] >= 1
    assert seats.take("somebody else")


def test_a_seat_given_back_is_there_again() -> None:
    seats = Seats(4, 4, part=4)
    assert taken(seats, "one") == 1
    seats.leave("one")
    assert taken(seats, "other") == 1


def test_without_a_part_only_the_bounds_count() -> None:
    seats = Seats(3, 2)
    assert [taken(seats, whose) for whose in ("one", "other", "third")] == [2, 1, 0]
