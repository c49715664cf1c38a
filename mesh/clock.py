"""Time for the whole project: the only file that asks the operating system what time it is.

Deadlines of operations are decided by the store's TIME, never by these functions; they serve local waits,
signatures and display.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Final

# Linux stops CLOCK_MONOTONIC in a suspend; elsewhere the clock behind time.monotonic, or this one, goes on.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
boot_s: Final[Callable[[], float]] = time.monotonic if _CLOCK is None else partial(time.clock_gettime, _CLOCK)
"""As `monotonic_s`, counting on while the machine sleeps."""


def now_ms() -> int:
    """Wall clock, milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on a clock that never steps; only differences mean anything."""
    return time.monotonic()


def monotonic_ms() -> int:
    """As `monotonic_s`, in whole milliseconds."""
    return time.monotonic_ns() // 1_000_000


def thread_s() -> float:
    """Seconds that this thread has computed; for bounds on work, which a busy machine must not make shorter."""
    return time.thread_time()


async def sleep(seconds: float) -> None:
    """Suspend the calling task for `seconds`."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Block the calling thread for `seconds`; for synchronous callers only."""
    time.sleep(seconds)


def to_rfc3339(at_ms: int) -> str:
    """`1700000000123` -> `2023-11-14T22:13:20.123Z` (RFC 3339, UTC, milliseconds)."""
    return _second(at_ms // 1000) + _MILLIS[at_ms % 1000]


_MILLIS: Final = [f".{millis:03d}Z" for millis in range(1000)]


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    # Most stamps of a moment share their second, and writing one out costs 2 us.
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def from_rfc3339(text: str) -> int:
    """RFC 3339 with any offset -> milliseconds since the epoch. Raises ValueError."""
    stamp = datetime.fromisoformat(text)
    if stamp.tzinfo is None:
        message = "time zone missing"
        raise ValueError(message)
    return round(stamp.timestamp() * 1000)


def to_http_date(at_ms: int) -> str:
    """`Tue, 14 Nov 2023 22:13:20 GMT` (RFC 9110 section 5.6.7, IMF-fixdate)."""
    return _http_second(at_ms // 1000)


@lru_cache(maxsize=64)
def _http_second(seconds: int) -> str:
    stamp = datetime.fromtimestamp(seconds, UTC)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[stamp.weekday()]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[stamp.month - 1]
    return f"{day}, {stamp.day:02d} {month} {stamp.year} {stamp:%H:%M:%S} GMT"
