"""When a schedule's times are, clocks that change included (P373, P374). Pure."""

from __future__ import annotations

from datetime import datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from gateway.schedules.times import Clock, spread
from mesh.errors import Malformed

BERLIN = "Europe/Berlin"
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def local(cron: str, after: str, count: int, zone: str = BERLIN) -> list[str]:
    times = islice(Clock(cron, zone).times(ms(after)), count)
    return [datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).isoformat() for at in times]


class TestClocksThatChange:
    def test_a_local_time_that_does_not_exist(self) -> None:
        """P374: 02:30 on the day when 02:00 is followed by 03:00 is at 03:00, once; the days around are as ever."""
        assert local("30 2 * * *", "2026-03-28T00:00:00+01:00", 3) == [
            "2026-03-28T02:30:00+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-30T02:30:00+02:00",
        ]

    def test_two_times_that_fall_together_are_one(self) -> None:
        """P374: 02:30, which is put to 03:00, and 03:00 itself."""
        assert local("0,30 2,3 29 3 *", "2026-03-29T01:00:00+01:00", 2) == [
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:30:00+02:00",
        ]

    @pytest.mark.parametrize("begin", ["01:00:00+02:00", "02:10:00+02:00"])
    def test_a_local_time_that_comes_twice(self, begin: str) -> None:
        """P374: a fixed hour is the first of the two."""
        first, second = local("30 2 * * *", f"2026-10-25T{begin}", 2)
        assert (first, second) == ("2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00")

    @pytest.mark.parametrize("begin", ["02:30:00+02:00", "02:45:00+02:00", "02:10:00+01:00", "02:30:00+01:00"])
    def test_it_is_not_run_again_in_the_second_hour(self, begin: str) -> None:
        """P374: wherever the count is taken up."""
        assert local("30 2 * * *", f"2026-10-25T{begin}", 1) == ["2026-10-26T02:30:00+01:00"]

    def test_every_hour_is_every_hour(self) -> None:
        """P374: with a wildcard hour each real hour has its time, in both directions."""
        autumn = local("0 * * * *", "2026-10-25T00:30:00+02:00", 4)
        assert autumn == [f"2026-10-25T0{one}:00" for one in ("1:00:00+02", "2:00:00+02", "2:00:00+01", "3:00:00+01")]
        spring = [*islice(Clock("0 * * * *", BERLIN).times(ms("2026-03-29T00:30:00+01:00")), 4)]
        assert [later - earlier for earlier, later in pairwise(spring)] == [HOUR_MS] * 3


class TestTimes:
    def test_after_is_after(self) -> None:
        """P373: never the same time again, whatever the milliseconds."""
        clock = Clock("*/5 * * * *", "UTC")
        at = ms("2026-11-23T10:05:00+00:00")
        assert (clock.after(at - 1), clock.after(at), clock.after(at + 1)) == (at, at + 300_000, at + 300_000)
        assert list(clock.between(at, at + 600_000)) == [at, at + 300_000, at + 600_000]

    def test_zones(self) -> None:
        assert Clock("0 9 * * MON-FRI", "Asia/Kolkata").after(ms("2026-11-20T12:00:00Z")) == ms("2026-11-23T03:30:00Z")

    def test_seconds(self) -> None:
        """P373: six fields."""
        at = ms("2026-11-23T10:05:00+00:00")
        assert Clock("*/20 * * * * *", "UTC").after(at + 1) == at + 20_000

    @pytest.mark.parametrize("cron", ["", "x", "* * * *", "61 * * * *", "0 0 30 2 *", "@daily", "* " * 5 + "*" * 300])
    def test_bad_expressions(self, cron: str) -> None:
        """P373."""
        with pytest.raises(Malformed) as refused:
            Clock(cron, "UTC")
        assert refused.value.code == "cron_invalid"

    @pytest.mark.parametrize(
        "zone",
        [
            *("", "Mars", "../../etc/passwd", "/etc/localtime", "Europe", "x" * 200, "UTC\0"),
            *("localtime", "posixrules", "Factory", "right/UTC", "posix/UTC", "tzdata.zi"),
        ],
    )
    def test_bad_zones(self, zone: str) -> None:
        """P373."""
        with pytest.raises(Malformed) as refused:
            Clock("* * * * *", zone)
        assert refused.value.code == "timezone_invalid"

    def test_jitter(self) -> None:
        """P373: below its bound, the same on every gateway, different from time to time."""
        found = [spread("s-1", at * 60_000, 5_000) for at in range(1, 100)]
        assert found == [spread("s-1", at * 60_000, 5_000) for at in range(1, 100)]
        assert len(set(found)) > 50
        assert 0 <= min(found) <= max(found) < 5_000
        assert spread("s-1", 60_000, 0) == 0
