"""What a blob store is, and reading from one with an eye on the digest. No I/O of its own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

from mesh.blobs.spool import Spooled
from mesh.errors import BlobCorrupt, BlobMissing

OWNERS_PAGE: Final = 500


class BlobStore(Protocol):
    """Keeps blobs by owner (an operation's id) and SHA-256. `place` is the word for it in references: `file`, `s3`.

    Every method raises StorageFull, BlobMissing or Unavailable, and may be repeated.
    """

    place: str

    async def put(self, owner: str, spooled: Spooled) -> None:
        """Keep a spooled body; it is durable when this returns. There already: the same again."""
        ...

    async def read(self, owner: str, sha256: str, start: int, count: int) -> AsyncIterator[bytes]:
        """`count` bytes from `start` on. Raises BlobMissing before the first of them."""
        ...

    async def size(self, owner: str, sha256: str) -> int | None:
        """How many bytes a blob has; None when it is not there."""
        ...

    async def drop(self, owner: str) -> None:
        """Delete all blobs of an owner; none is fine."""
        ...

    async def drop_others(self, owner: str, kept: frozenset[str], before_ms: int) -> int:
        """Delete the blobs of an owner that are not among `kept` and older than a time; how many."""
        ...

    def owners(self, before_ms: int) -> AsyncIterator[list[tuple[str, int]]]:
        """Owners whose newest blob is older than a time, with when that came, some at a time."""
        ...

    async def sweep_parts(self, before_ms: int) -> int:
        """Delete what uploads left behind that were last written to before a time; how many."""
        ...

    async def check(self, candidate: str) -> str:
        """What this place is called: `candidate` from now on, if it had no name. Raises ConfigError: unusable."""
        ...

    async def close(self) -> None: ...


class Stored:
    """A blob as a mesh.streams.Source, or a span of it.

    Read as a whole it is checked: the last piece is held back until the digest is right, so that a receiver who counts
    never has all of something else.
    """

    def __init__(
        self, store: BlobStore, owner: str, sha256: str, size: int, *, start: int = 0, count: int | None = None
    ) -> None:
        self._store = store
        self._owner = owner
        self._whole = count is None
        self.sha256 = sha256
        self.start = start
        self.size = size if count is None else count

    async def begin(self) -> AsyncIterator[bytes]:
        """The pieces, once the first can be had. Raises BlobMissing, Unavailable."""
        return self._checked(await self._store.read(self._owner, self.sha256, self.start, self.size))

    async def chunks(self) -> AsyncIterator[bytes]:
        async for piece in await self.begin():
            yield piece

    async def _checked(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        found = hashlib.sha256()
        held, count = b"", 0
        async for piece in pieces:
            if held:
                yield held
            count += len(piece)
            found.update(piece)
            held = piece
        if count != self.size or (self._whole and found.hexdigest() != self.sha256):
            raise corrupt(self._owner)
        if held:
            yield held


def missing(owner: str) -> BlobMissing:
    """The one wording for a blob that is not there."""
    detail = f"a payload of operation {owner} is not here: all gateways of a mesh need one place for them ([blobs] url)"
    return BlobMissing(detail, retry_after_s=5)


def corrupt(owner: str) -> BlobCorrupt:
    detail = f"a payload of operation {owner} is damaged where it is kept: its SHA-256 is not the one it came with"
    return BlobCorrupt(detail, retry_after_s=30)
