"""Deleting what no operation has any more, and what uploads left behind that a kill cut short.

The record goes first, always: blobs are deleted because their operation is not in the store any more, never the other
way round, so a kill at any moment leaves bytes too many and never too few. What is younger than the grace may belong to
a start on its way into the store and is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mesh.blobs.store import BlobStore
from mesh.clock import now_ms

LATER_MAX: Final = 10_000
"""Owners of which it could not be said yet what they keep; of more, what is too much goes with the operation."""
_log: Final = logging.getLogger(__name__)


class Sweeper:
    """The rounds of one gateway over one place."""

    def __init__(self, store: BlobStore, grace_ms: int) -> None:
        self._store = store
        self._grace_ms = grace_ms
        self._looked_ms = 0
        self._later: set[str] = set()

    async def round(
        self,
        exist: Callable[[Sequence[str]], Awaitable[list[bool]]],
        kept: Callable[[str], Awaitable[frozenset[str] | None]],
    ) -> int:
        """One round; how many owners' blobs were deleted.

        `exist`: which of these operations the store still has; `kept`: the digests that one refers to, None when that
        cannot be said, or not yet: what runs may refer to anything it has. What an operation has beside them, such as
        the result of an attempt that came too late, is looked for once after its newest blob came of age and it can be
        said: a blob that comes makes its owner young again.
        """
        before_ms = now_ms() - self._grace_ms
        gone = surplus = 0
        later: set[str] = set()
        async for page in self._store.owners(before_ms):
            owners = [owner for owner, _ in page]
            for (owner, newest_ms), there in zip(page, await exist(owners), strict=True):
                if not there:
                    await self._store.drop(owner)
                    gone += 1
                elif newest_ms >= self._looked_ms or owner in self._later:
                    wanted = await kept(owner)
                    if wanted is not None:
                        surplus += await self._store.drop_others(owner, wanted, before_ms)
                    elif len(later) < LATER_MAX:
                        later.add(owner)
        self._looked_ms, self._later = before_ms, later
        parts = await self._store.sweep_parts(before_ms)
        if gone or surplus or parts:
            text = "deleted: payloads of %d operations that are no more, %d that no record names, %d left-over uploads"
            _log.info(text, gone, surplus, parts)
        return gone
