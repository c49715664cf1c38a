"""Two small judgements on what happened to calls: can an instance be reached, does an endpoint need a rest. Pure.

Both are this gateway's own view; leases and draining, which all gateways share, are instances.py. Times are
milliseconds of any clock that never steps, passed in.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from registry.policy import BreakerPolicy

SUSPECT_MS_MIN: Final = 500
SUSPECT_MS_MAX: Final = 10_000
FAILED_ROW: Final = 3
"""Requests in a row without a word that make one instance suspect; its endpoint's breaker counts for itself."""


class Health(StrEnum):
    """What users read beside an instance or an endpoint."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    OFFLINE = "offline"
    DRAINING = "draining"


class Judgement(NamedTuple):
    """`since_ms` is Unix time."""

    health: Health
    why: str
    since_ms: int


class Outcome(StrEnum):
    """What became of one admitted request, as far as routing is concerned (rule P115 of specs/protocol.md)."""

    OK = "ok"
    """Answered by the agent, be it with an error: how an operation ends says nothing of those beside it."""
    FAILED = "failed"
    """Sent, and no word of the agent came back: the line broke, time ran out, no HTTP, or a proxy spoke for it."""
    UNREACHABLE = "unreachable"
    """Surely never received. The instance rests by itself (`Reach`), and is back sooner than behind a breaker."""
    NEUTRAL = "neutral"
    """Says nothing: it was not sent after all."""


class Reach:
    """Whether requests get through to one instance, and how many are there now."""

    __slots__ = (
        "failing_since_ms", "heard_ms", "in_flight", "pause_ms", "rest_ms", "rest_until_ms", "row", "since_ms",
        "until_ms",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_flight = 0
        self.heard_ms = 0
        """When it answered a request last, 0 for never."""
        self.row = 0
        """Requests in a row that were sent and got no word back."""
        self.rest_ms = 0
        """> 0 while it fails: out of the rotation as long as others do not, tried again at `rest_until_ms`."""
        self.rest_until_ms = 0
        self.failing_since_ms = 0
        self.pause_ms = 0
        """> 0 from the first unreachable request until one gets through."""
        self.until_ms = 0
        """Left alone until then; later it is tried again."""
        self.since_ms = 0

    def lost(self, now_ms: int) -> None:
        """A request did not get through. Requests that were under way together count once."""
        if now_ms < self.until_ms:
            return
        if not self.pause_ms:
            self.since_ms = now_ms
        self.pause_ms = min(self.pause_ms * 2, SUSPECT_MS_MAX) or SUSPECT_MS_MIN
        self.until_ms = now_ms + self.pause_ms

    def failed(self, now_ms: int) -> None:
        """A request was sent, and no word came back. The rest doubles with every one that is tried after it."""
        self.reached()
        self.row += 1
        if self.row < FAILED_ROW or now_ms < self.rest_until_ms:
            return
        if not self.rest_ms:
            self.failing_since_ms = now_ms
        self.rest_ms = min(self.rest_ms * 2, SUSPECT_MS_MAX) or SUSPECT_MS_MIN
        self.rest_until_ms = now_ms + self.rest_ms

    def answered(self, now_ms: int) -> bool:
        """It answered, whatever; whether that is news."""
        self.heard_ms = now_ms
        if not (self.row or self.rest_ms or self.pause_ms):
            return False
        news = bool(self.rest_ms or self.pause_ms)
        self.row = self.rest_ms = self.rest_until_ms = 0
        self.reached()
        return news

    def reached(self) -> None:
        """A request got through, or the instance registered anew."""
        self.pause_ms = self.until_ms = 0

    def anew(self) -> None:
        """Another process, another address: nothing that happened so far says anything of it."""
        self.row = self.rest_ms = self.rest_until_ms = self.heard_ms = 0
        self.reached()

    def resting(self, now_ms: int) -> bool:
        """Whether it fails, and its next try is not due yet."""
        return now_ms < self.rest_until_ms

    def usable(self, now_ms: int) -> bool:
        return now_ms >= self.until_ms


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Looked up once: CPython 3.11 is slow to find the member of an enum.
_CLOSED: Final = BreakerState.CLOSED
_OK: Final = Outcome.OK


class Breaker:
    """Gives an endpoint a rest after failures in a row, then lets one probe decide.

    Only the probe's own outcome counts while it is open: what was under way before it opened is old news.
    `since_ms`: when it opened or was closed last, 0 while it has never been open. `open_ms`: the present rest, 0 while
    closed.
    """

    __slots__ = ("_probe", "_probes", "_state", "failures", "open_ms", "since_ms", "until_ms")

    def __init__(self) -> None:
        self._state = _CLOSED
        self._probe = 0
        self._probes = 0
        self.failures = 0
        self.open_ms = 0
        self.until_ms = 0
        self.since_ms = 0

    @property
    def closed(self) -> bool:
        """Whether nothing keeps requests back; the clock cannot change that."""
        return self._state is _CLOSED

    def state(self, policy: BreakerPolicy, now_ms: int) -> BreakerState:
        if self._state is _CLOSED:
            return self._state
        if not policy.failures:
            self._close(now_ms)
        elif self._state is BreakerState.OPEN and now_ms >= self.until_ms:
            self._state = BreakerState.HALF_OPEN
        return self._state

    def open_for(self, policy: BreakerPolicy, now_ms: int) -> bool:
        """Whether one more request may be sent."""
        state = self.state(policy, now_ms)
        return state is _CLOSED or (state is BreakerState.HALF_OPEN and not self._probe)

    def reset(self, now_ms: int) -> None:
        """Somebody arrived of whom the failures so far say nothing."""
        self.failures = 0
        if self._state is not _CLOSED:
            self._close(now_ms)

    def take_probe(self) -> int:
        """The number of the one probe, to be settled with; 0 when the breaker is closed."""
        if self._state is _CLOSED:
            return 0
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def settle(self, policy: BreakerPolicy, probe: int, outcome: Outcome, now_ms: int) -> None:
        """The outcome of a request that was sent as probe number `probe`, or 0."""
        if probe:
            self._settle_probe(policy, probe, outcome, now_ms)
        elif self._state is _CLOSED:
            if outcome is _OK:
                self.failures = 0
            elif outcome is Outcome.FAILED:
                self.failures += 1
                if policy.failures and self.failures >= policy.failures:
                    self.since_ms = now_ms
                    self._open(policy.open_ms, now_ms)

    def _settle_probe(self, policy: BreakerPolicy, probe: int, outcome: Outcome, now_ms: int) -> None:
        if probe != self._probe:  # the breaker was closed in between: the policy changed, an instance arrived
            return
        self._probe = 0
        if outcome is Outcome.OK:
            self._close(now_ms)
        elif outcome is Outcome.FAILED:
            self.failures += 1
            self._open(min(self.open_ms * 2, policy.open_ms_max), now_ms)

    def _open(self, open_ms: int, now_ms: int) -> None:
        self._state = BreakerState.OPEN
        self.open_ms = open_ms
        self.until_ms = now_ms + open_ms

    def _close(self, now_ms: int) -> None:
        self._state = _CLOSED
        self._probe = 0
        self.since_ms = now_ms
        self.failures = self.open_ms = self.until_ms = 0
