"""When a schedule's times are: a cron expression in a time zone, spread by a jitter. Pure; knows no schedule.

Cron is cronsim's, which does as Debian's does, also where clocks change (P374).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b
from importlib.resources import files
from itertools import takewhile
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from mesh.errors import Malformed

CRON_CHARS_MAX: Final = 200
ZONE_CHARS_MAX: Final = 64


@cache
def _zones() -> frozenset[str]:
    """Names of the IANA database, from its package and so the same on every gateway.

    A machine's own directory also has `localtime`, `posixrules` and `right/`, another time on the next machine.
    """
    return frozenset(files("tzdata").joinpath("zones").read_text().split()) - {"Factory"}


class Clock:
    """`cron` in `timezone`. All times in milliseconds since the epoch."""

    def __init__(self, cron: str, timezone: str) -> None:
        """Raises Malformed `cron_invalid`, `timezone_invalid`."""
        if timezone not in _zones():
            shown = timezone[:ZONE_CHARS_MAX]
            detail = f"{shown!r} is no time zone of the IANA database, such as Europe/Berlin or UTC"
            raise Malformed(detail, code="timezone_invalid")
        self._zone = ZoneInfo(timezone)
        self._cron = cron
        if len(cron) > CRON_CHARS_MAX:
            raise Malformed(f"a cron expression has at most {CRON_CHARS_MAX} characters", code="cron_invalid")
        try:
            CronSim(cron, datetime.fromtimestamp(0, self._zone))
        except CronSimError as fault:
            detail = f"not a cron expression such as `0 2 * * *` (minute hour day month weekday): {fault}"
            raise Malformed(detail, code="cron_invalid") from None

    def times(self, after_ms: int) -> Iterator[int]:
        """All times after that one, without end unless nothing matches in the next 50 years."""
        last = after_ms
        # The whole second: cronsim counts in them and gives what is after its start.
        for one in CronSim(self._cron, datetime.fromtimestamp(after_ms // 1000, self._zone)):
            at = int(one.astimezone(UTC).timestamp()) * 1000
            if at > last:
                yield at
                last = at

    def after(self, after_ms: int) -> int:
        """The next time, 0 when there is none."""
        return next(self.times(after_ms), 0)

    def between(self, from_ms: int, until_ms: int) -> Iterator[int]:
        """The times from `from_ms` to `until_ms`, both included."""
        return takewhile(lambda at: at <= until_ms, self.times(from_ms - 1))


@lru_cache(maxsize=4096)
def clock_of(cron: str, timezone: str) -> Clock:
    """Clocks of schedules come again with every time."""
    return Clock(cron, timezone)


def spread(schedule_id: str, at_ms: int, jitter_ms: int) -> int:
    """How long after `at_ms` to act: below `jitter_ms`, the same on every gateway."""
    if not jitter_ms or not at_ms:
        return 0
    return int.from_bytes(blake2b(f"{schedule_id}.{at_ms}".encode(), digest_size=8).digest()) % jitter_ms
