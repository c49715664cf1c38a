"""How full the store's memory is: read now and then, so that admission stops before the store has to refuse.

The store itself refuses starts at its `maxmemory` and lets what is under way end (library.ADMISSION). This is the
earlier, softer line, where there is still room for what running work writes.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh.store.link import Link


class Memory(NamedTuple):
    """Bytes used and the most there may be, 0 for no limit."""

    used: int
    limit: int

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit else 0.0


async def read_memory(link: Link) -> Memory:
    """Raises StoreUnavailable, OutcomeUnknown."""
    text: bytes = await link.call(b"INFO", b"memory")
    fields = dict(line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)
    return Memory(int(fields.get("used_memory", "0")), int(fields.get("maxmemory", "0")))
