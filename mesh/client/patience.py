"""Why a call waits, in words, and when that is worth a line in the caller's log.

Owns the words and the rhythm; asks nothing (flow.py does) and knows no gateway.
"""

from __future__ import annotations

import logging
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
        return f"attempt {record['attempt']} failed, and the next one is at {record.get('next_attempt_at', '?')}"
    return ""


class Patience:
    """One call that waits. `look` at each record that comes instead of a result; it says little."""

    def __init__(self) -> None:
        self._began_s = monotonic_s()
        self._told_s = 0.0
        self._told = ""
        self.why = ""
        """What kept it from going on at the last look."""

    def poll_s(self, wait_s: float) -> float:
        """How long to ask for at a time: `wait_s`, and at first no longer than a caller should sit in the dark."""
        return wait_s if self._waited_s() >= QUIET_S else min(wait_s, QUIET_S)

    def look(self, record: Record) -> None:
        """A warning with the operation's id when it waits: after QUIET_S, at a new reason, else every AGAIN_S."""
        waited_s, self.why = self._waited_s(), why_waits(record)
        if not self.why or waited_s < QUIET_S:
            return
        kind = record.get("blocked") or record["state"]
        if kind == self._told and waited_s - self._told_s < AGAIN_S:
            return
        self._told, self._told_s = kind, waited_s
        told = "operation %s waits, for %.0f s now: %s; it is kept and goes on by itself"
        logger.warning(told, record["id"], waited_s, self.why)

    def _waited_s(self) -> float:
        return monotonic_s() - self._began_s
