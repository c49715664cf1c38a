"""Why a call waits, in words, and when that is worth a line in the caller's log.

Owns the words and the rhythm; asks nothing (flow.py does) and knows no gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mesh.clock import monotonic_s

if TYPE_CHECKING:
    from mesh.client.order import Record

logger: Final = logging.getLogger("mesh.client")

QUIET_S: Final = 5.0
"""Most calls are over by then; about those that are not, somebody who looks at a silent program wants to know."""
AGAIN_S: Final = 60.0

WHY: Final[dict[str, str]] = {
    "no_instance": "no instance of {endpoint!r} is alive",
    "unreachable": "no instance of {endpoint!r} can be reached at its address",
    "breaker": "the requests to {endpoint!r} failed, so its breaker lets through a probe only",
    "paused": "{endpoint!r} is paused",
    "concurrency": "{endpoint!r} has as many operations as its policy allows at a time",
    "rate": "{endpoint!r} was sent as many operations as its policy allows per second",
    "busy": "the agents of {endpoint!r} are there and have no seat free",
    "endpoint_deleted": "{endpoint!r} was removed, and has not come back",
    "no_version": "no instance of {endpoint!r} with its version is alive",
    "namespace_concurrency": "your namespace has as many operations at {endpoint!r} as it may at a time",
    "namespace_rate": "your namespace has sent {endpoint!r} as many operations as it may per second",
}
"""`blocked` of a record -> what it means to a caller."""


def why_waits(record: Record) -> str:
    """What keeps an operation from going on, or "" while nothing does: its agent is at work, or about to be."""
    if reason := record.get("blocked", ""):
        if "blocked_why" in record:
            return record["blocked_why"]
        return WHY.get(reason, reason.replace("_", " ")).format(endpoint=record.get("endpoint", ""))
    if record["state"] == "backing_off":
        last = record.get("last_failure")
        how = f": {last['message']};" if last else ","
        return f"attempt {record['attempt']} failed{how} the next one is at {record.get('next_attempt_at', '?')}"
    return ""


def lacks_failure(record: Record) -> bool:
    """Whether a whole record would say more of why it waits: answers about a result leave out how attempts failed."""
    return record["state"] == "backing_off" and not record.get("blocked") and "last_failure" not in record


class Patience:
    """One call that waits. `look` at each record that comes instead of a result; it says little, to `tell`."""

    def __init__(self, tell: Callable[[str], object] = logger.warning) -> None:
        self._tell = tell
        self._began_s = monotonic_s()
        self._told_s = 0.0
        self._told = ""
        self.why = ""
        """What kept it from going on at the last look."""

    def poll_s(self, wait_s: float) -> float:
        """How long to ask for at a time: `wait_s`, and at first no longer than a caller should sit in the dark."""
        return wait_s if self._waited_s() >= QUIET_S else min(wait_s, QUIET_S)

    def due(self, record: Record) -> bool:
        """Whether it would be told why this one waits: after QUIET_S, at a new reason, else every AGAIN_S."""
        waited_s = self._waited_s()
        if waited_s < QUIET_S or not why_waits(record):
            return False
        return _kind(record) != self._told or waited_s - self._told_s >= AGAIN_S

    def look(self, record: Record) -> None:
        """Tells why the operation waits, with its id, when that is due."""
        self.why = why_waits(record)
        if not self.due(record):
            return
        self._told, self._told_s = _kind(record), self._waited_s()
        waits = f"operation {record['id']} waits, for {self._told_s:.0f} s now"
        self._tell(f"{waits}: {self.why}; it is kept and goes on by itself")

    def _waited_s(self) -> float:
        return monotonic_s() - self._began_s


def _kind(record: Record) -> str:
    return record.get("blocked") or record["state"]
