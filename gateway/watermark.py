"""The watermark: no new work while the store's memory is nearly full, so that what was accepted has room to end.

Looks at the store once a second. Refuses starts alone; what runs, its children and steps included, goes on until the
store itself refuses.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from mesh.clock import sleep
from mesh.errors import Unavailable
from mesh.store.memory import Memory, read_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.store.link import Link

LOOK_S: Final = 1.0
BACK: Final = 0.03
"""So much of the memory must have become free below the mark before work is taken again."""
RETRY_AFTER_S: Final = 10

_log = logging.getLogger(__name__)


class Watermark:
    """One per gateway. `share`: of the store's `maxmemory`; a store without one is never full."""

    def __init__(self, link: Link, share: float, gauge: Callable[[str, str, Callable[[], float]], None]) -> None:
        """`gauge` makes a metric of a name, a text and what reads it."""
        self._link = link
        self._share = share
        self.memory = Memory(0, 0)
        """As last read."""
        self.full = False
        gauge("mesh_store_memory_bytes", "Memory of the store in use", lambda: self.memory.used)
        gauge("mesh_store_memory_max_bytes", "Its maxmemory, 0 for none", lambda: self.memory.limit)
        gauge("mesh_store_nearly_full", "1 while no new work is taken for want of memory", lambda: self.full)

    async def look(self) -> None:
        """Read anew. Raises StoreUnavailable, OutcomeUnknown; what was known stays."""
        self.memory = await read_memory(self._link)
        full = self.memory.share >= (self._share - BACK if self.full else self._share)
        if full != self.full:
            _log.warning(
                "the store uses %d of %d bytes: new work is %s", *self.memory, "refused" if full else "taken again"
            )
        self.full = full

    def refusal(self) -> Unavailable:
        """What a start is answered while `full`."""
        detail = (
            f"the store's memory is {self.memory.share:.0%} full and no new work is taken above {self._share:.0%};"
            " nothing was changed, repeat later with the same key"
        )
        return Unavailable(detail, code="store_nearly_full", retry_after_s=RETRY_AFTER_S)

    async def run(self) -> None:
        """Look for as long as the gateway lives."""
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a store that will not say is asked again, and never called full
                _log.debug("the store's memory cannot be read: %s", error)
            await sleep(LOOK_S)
