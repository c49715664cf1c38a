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

_log: Final = logging.getLogger(__name__)


async def sweep(store: BlobStore, exist: Callable[[Sequence[str]], Awaitable[list[bool]]], grace_ms: int) -> int:
    """One round; how many owners' blobs were deleted. `exist`: which of these operations the store still has."""
    before_ms = now_ms() - grace_ms
    gone = 0
    async for owners in store.owners(before_ms):
        for owner, there in zip(owners, await exist(owners), strict=True):
            if not there:
                await store.drop(owner)
                gone += 1
    parts = await store.sweep_parts(before_ms)
    if gone or parts:
        _log.info("payloads of %d operations that are no more, and %d left-over uploads, were deleted", gone, parts)
    return gone
