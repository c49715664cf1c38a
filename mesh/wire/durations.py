"""Time on the wire: Nexus timeouts, `Prefer`, HTTP-date and RFC 3339.

Owns the spelling only; what a timeout bounds and which waits are allowed is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final, NamedTuple

from mesh.clock import from_rfc3339
from mesh.errors import Malformed

DURATION_MS_MAX: Final = 3_155_760_000_000
"""100 years; a larger timeout is a mistake, and would overflow a deadline somewhere behind us."""
_DURATION_TEXT_MAX: Final = 32
_PREFER_TEXT_MAX: Final = 1024

_duration = re.compile(r"([0-9]+)(?:\.([0-9]+))?(ms|s|m)").fullmatch
_SCALE: Final = {"ms": 1, "s": 1000, "m": 60_000}

# Nothing stands behind a group that could fail, an unterminated quote runs to the end: linear whatever the input.
_preferences = re.compile(r'(?:[^,"]++|"(?:[^"\\]++|\\.)*"?)+').findall
_wait = re.compile(r'"?([0-9]{1,15}(?:\.[0-9]{1,9})?)"?').fullmatch

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_YEAR_PIVOT: Final = 70
"""Two-digit years of RFC 850 dates: 69 is 2069, 70 is 1970."""
_OUR_CHARS: Final = len("2023-11-14T22:13:20.123Z")
"""A time as the mesh itself writes it."""
_date = re.compile(
    r"(?:[A-Z][a-z]{2,8}, *)?([0-9]{1,2})[ -]([A-Z][a-z]{2})[ -]([0-9]{4}|[0-9]{2})"
    r" ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:GMT|UTC|UT|Z|([+-])([0-9]{2})([0-9]{2}))"
).fullmatch
_asctime = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([0-9]{4})"
).fullmatch
_rfc3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
).fullmatch


def parse_duration_ms(text: str) -> int | None:
    """`250ms`, `1.5s`, `2m` -> milliseconds, fractions cut off (`Operation-Timeout`, `Request-Timeout`).

    None for the empty text and for zero, which the reference server takes as "no timeout". Raises Malformed
    for everything else, hours, signs and spaces among it, and above DURATION_MS_MAX.
    """
    if not text:
        return None
    match = _duration(text) if len(text) <= _DURATION_TEXT_MAX else None
    if match is None:
        shown = text[:_DURATION_TEXT_MAX]
        raise Malformed(f"not a duration such as 250ms, 1.5s or 2m: {shown!r}", code="timeout_invalid")
    whole, fraction, unit = match.groups()
    scale = _SCALE[unit]
    value = int(whole) * scale
    if fraction:
        value += int(fraction) * scale // 10 ** len(fraction)
    if value > DURATION_MS_MAX:
        raise Malformed("a timeout is longer than 100 years", code="timeout_invalid")
    return value or None


def format_duration(ms: float) -> str:
    """`9997ms`: whole milliseconds, cut off, as the reference client writes them; never negative."""
    return f"{max(0, int(ms))}ms"


class Preference(NamedTuple):
    """What `Prefer` asked for. `wait_s` is None when it names no wait."""

    wait_s: float | None
    respond_async: bool


_NO_PREFERENCE: Final = Preference(None, respond_async=False)


def parse_prefer(values: Iterable[str]) -> Preference:
    """All `Prefer` values of a request (RFC 7240): `respond-async`, `wait=10`; others are ignored.

    Of a repeated preference the first counts. `wait` is seconds; a decimal is accepted beside the RFC's
    whole number. Raises Malformed on a wait that is not such a number, or on more than 1 KiB.
    """
    text = ",".join(values)
    if not text:
        return _NO_PREFERENCE
    if len(text) > _PREFER_TEXT_MAX:
        raise Malformed("Prefer is too long", code="prefer_invalid")
    return _preference(text)


@lru_cache(maxsize=64)
def _preference(text: str) -> Preference:
    wait_s: float | None = None
    respond_async = False
    for preference in _preferences(text) if '"' in text else text.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        name = name.strip().lower()
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait_s is None:
            match = _wait(value.strip())
            if match is None:
                raise Malformed("Prefer: wait is not a number of seconds", code="prefer_invalid")
            wait_s = float(match[1])
    return Preference(wait_s, respond_async)


@lru_cache(maxsize=64)
def parse_http_date(text: str) -> int:
    """An HTTP date -> milliseconds since the epoch. Raises Malformed.

    The three forms of RFC 9110 section 5.6.7, and RFC 5322 with a numeric zone, which the Nexus spec cites.
    """
    try:
        if match := _date(text):
            day, month, year, hour, minute, second, sign, zone_h, zone_min = match.groups()
            offset = timedelta(hours=int(zone_h), minutes=int(zone_min)) if sign else timedelta()
            zone = timezone(-offset if sign == "-" else offset)
        elif match := _asctime(text):
            month, day, hour, minute, second, year = match.groups()
            zone = UTC
        else:
            raise Malformed("not an HTTP date", code="time_invalid")
        full_year = int(year)
        if len(year) < len("1994"):
            full_year += 2000 if full_year < _YEAR_PIVOT else 1900
        clock = (int(hour), int(minute), int(second))
        stamp = datetime(full_year, _MONTHS.index(month) + 1, int(day), *clock, tzinfo=zone)
    except ValueError:
        raise Malformed("not an HTTP date", code="time_invalid") from None
    return round(stamp.timestamp()) * 1000


def parse_rfc3339(text: str) -> int:
    """RFC 3339 section 5.6, zone required -> milliseconds since the epoch. Raises Malformed."""
    if not _rfc3339(text):
        raise Malformed("not an RFC 3339 time", code="time_invalid")
    try:
        if len(text) == _OUR_CHARS and text[19] == "." and text[23] == "Z":
            return _second_ms(text[:19]) + int(text[20:23])
        return from_rfc3339(text.upper())
    except (ValueError, OverflowError):
        raise Malformed("not an RFC 3339 time", code="time_invalid") from None


@lru_cache(maxsize=64)
def _second_ms(text: str) -> int:
    # As mesh/clock.py writes: most stamps of a moment share their second, and reading one takes 2 us.
    return from_rfc3339(f"{text}Z".upper())
