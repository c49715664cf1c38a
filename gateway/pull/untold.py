"""Cancels for instances that do not poll right now, kept for their next poll. No I/O.

Forgotten, one is no harm: the heartbeat of its attempt is told the same.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.pull.frames import CancelBody

UNTOLD_MAX: Final = 10_000
"""Instances, of which the one that is kept longest makes room."""
UNTOLD_EACH_MAX: Final = 1_000


class Untold:
    """By endpoint and instance."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], deque[CancelBody]] = {}

    def keep(self, endpoint_id: str, instance: str, cancel: CancelBody) -> None:
        cancels = self._kept.setdefault((endpoint_id, instance), deque(maxlen=UNTOLD_EACH_MAX))
        cancels.append(cancel)
        if len(self._kept) > UNTOLD_MAX:
            del self._kept[next(iter(self._kept))]

    def take(self, endpoint_id: str, instance: str) -> Iterable[CancelBody]:
        """All that there are, which are told now."""
        return self._kept.pop((endpoint_id, instance), ())

    def forget(self, endpoint_id: str) -> None:
        """Nobody polls there any more."""
        for key in [key for key in self._kept if key[0] == endpoint_id]:
            del self._kept[key]
