"""A body on its way in: written to a temporary file and hashed in a thread, while the event loop receives.

Owns the bounds of what is under way: bytes of one body, memory in front of the disk, bodies at once, free space that is
left alone. A body has its seat among those at once from the first piece that goes to the disk: silence takes none.
Knows not what becomes of a finished file.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from mesh.errors import MeshError, StorageFull, TooLarge, TooMany, Unavailable
from mesh.ids import short_id
from mesh.seats import Seats
from mesh.wire.digests import mismatch

PIECE_BYTES: Final = 256 << 10
"""Handed to the thread at once, or more."""
AHEAD_BYTES_MAX: Final = 1 << 20
"""Received and not yet written, above which the sender is held back."""
SPOOLS_MAX: Final = 64
"""Bodies under way in one process that shares its seats among nobody."""
THREADS: Final = 4
LOOK_BYTES: Final = 16 << 20
"""How often free space is looked at."""
SUFFIX: Final = ".part"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spooled:
    """A whole body in a temporary file. `sha256` in hex."""

    __slots__ = ("_spool", "path", "sha256", "size")

    def __init__(self, spool: Spool, path: Path, size: int, sha256: str) -> None:
        self._spool = spool
        self.path = path
        self.size = size
        self.sha256 = sha256

    def hand_on(self) -> None:
        """The file is somebody else's from now on."""
        self._spool.handed_on = True


class Spooler:
    """Where bodies of this process are spooled: below `directory`, which is made when first needed.

    bytes_max       of one body; `limit` says in words whose limit that is
    free_bytes_min  of the file system, left for others
    """

    def __init__(self, directory: Path, *, bytes_max: int, limit: str, free_bytes_min: int = 0) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self.limit = limit
        self.free_bytes_min = free_bytes_min
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mesh-blobs")
        self._seats = Seats(SPOOLS_MAX, SPOOLS_MAX)
        self.taken_bytes = 0
        """Bytes of all bodies so far, for metrics."""

    def open(
        self,
        *,
        told: str | None = None,
        length: int | None = None,
        sync: bool = True,
        seats: Seats | None = None,
        whose: str = "",
    ) -> Spool:
        """A place for one body. `told`: the SHA-256 its sender said; `length`: its size, where that is known.

        `sync`: it is to outlive the machine. `seats`: where it takes one of the share of `whose`, when enough of it has
        come. Raises TooLarge, TooMany, StorageFull.
        """
        seats = seats or self._seats
        if length is not None and length > self.bytes_max:
            raise self.too_large()
        if not seats.free(whose):
            raise _busy()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check_room(length or 0)
        except OSError as fault:
            raise trouble(fault) from None
        path = self.directory / f"{short_id('body')}{SUFFIX}"
        return Spool(self, path, told, length, seats, whose, sync=sync)

    def check_room(self, more: int) -> None:
        """Raises StorageFull when `more` bytes would use up what is to be left free."""
        if self.free_bytes_min and shutil.disk_usage(self.directory).free - more < self.free_bytes_min:
            raise _full()

    def too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.bytes_max} bytes, {self.limit}")

    def close(self) -> None:
        """No more bodies; those under way fail."""
        self.threads.shutdown(wait=False, cancel_futures=True)


class Spool:
    """One body on its way in (mesh.streams.Intake)."""

    def __init__(
        self,
        spooler: Spooler,
        path: Path,
        told: str | None,
        length: int | None,
        seats: Seats,
        whose: str,
        *,
        sync: bool,
    ) -> None:
        self._spooler = spooler
        self._path = path
        self._told = told
        self._length = length
        self._seats = seats
        self._whose = whose
        self._seated = False
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._hash = hashlib.sha256()
        self._file = -1
        self._size = 0
        self._looked = 0
        self._ahead: list[bytes] = []
        self._ahead_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._held = False
        self._over = False
        self._room: Callable[[], None] = _nothing
        self._tell: Callable[[MeshError], None] = _nothing
        self.fault: MeshError | None = None
        self.handed_on = False

    def watch(self, room: Callable[[], None], fault: Callable[[MeshError], None]) -> None:
        self._room, self._tell = room, fault

    def feed(self, chunk: bytes) -> bool:
        if self.fault is not None or self._over:
            return True
        self._size += len(chunk)
        if self._size > self._spooler.bytes_max:
            self._fail(self._spooler.too_large())
            return True
        self._ahead.append(chunk)
        self._ahead_bytes += len(chunk)
        if self._writing is None and self._ahead_bytes >= PIECE_BYTES:
            if not self._sit():
                return True
            self._write_ahead()
        self._held = self._ahead_bytes >= AHEAD_BYTES_MAX
        return not self._held

    async def room(self) -> None:
        """Wait until more may be fed; for those who read by themselves. Raises what went wrong."""
        while self._ahead_bytes >= AHEAD_BYTES_MAX and self._writing is not None and self.fault is None:
            await asyncio.wait([self._writing])
        if self.fault is not None:
            raise self.fault

    async def finish(self) -> Spooled:
        """The file, whole and on the disk. Raises StorageFull, TooLarge, Unavailable, Malformed `digest_mismatch`."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self.fault is None and self._sit():
            chunks, self._ahead, self._ahead_bytes = self._ahead, [], 0
            self._begin(self._end, chunks)
            while self._writing is not None:
                await asyncio.wait([self._writing])
        if self.fault is not None:
            self.abandon()
            raise self.fault
        found = self._hash.hexdigest()
        if self._told is not None and self._told != found:
            self.abandon()
            raise mismatch(self._told, found)
        self._release()
        self._spooler.taken_bytes += self._size
        return Spooled(self, self._path, self._size, found)

    def abandon(self) -> None:
        self._release()
        if self.handed_on:
            return
        self.handed_on = True
        self._ahead.clear()
        # Behind the write that is under way: it may be the one that creates the file.
        if self._writing is not None:
            self._writing.add_done_callback(lambda _: self._delete())
        else:
            self._delete()

    # -- inside

    def _sit(self) -> bool:
        if not self._seated and not self._over:
            self._seated = self._seats.take(self._whose)
            if not self._seated:
                self._fail(_busy())
        return self._seated

    def _release(self) -> None:
        self._over = True
        if self._seated:
            self._seated = False
            self._seats.leave(self._whose)

    def _delete(self) -> None:
        file, self._file = self._file, -1
        # In a thread: the end of a file of gigabytes takes its time.
        try:
            self._spooler.threads.submit(_remove, file, self._path)
        except RuntimeError:
            _remove(file, self._path)

    def _write_ahead(self) -> None:
        chunks, self._ahead, self._ahead_bytes = self._ahead, [], 0
        self._begin(self._write, chunks)

    def _begin(self, work: Callable[[list[bytes]], None], chunks: list[bytes]) -> None:
        # One at a time, so that the file has one user at any moment.
        self._writing = self._loop.run_in_executor(self._spooler.threads, work, chunks)
        self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writing = None
        if writing.cancelled():
            self._fail(Unavailable("the process is ending", code="stopping"))
            return
        error = writing.exception()
        if error is not None:
            self._fail(error if isinstance(error, MeshError) else trouble(error))
            return
        if self._ahead_bytes >= PIECE_BYTES and not self._over:
            self._write_ahead()
        if self._held and self._ahead_bytes < AHEAD_BYTES_MAX:
            self._held = False
            self._room()

    def _fail(self, fault: MeshError) -> None:
        if self.fault is None:
            self.fault = fault
            self._ahead.clear()
            self._ahead_bytes = 0
            self._tell(fault)
            self._room()

    def _write(self, chunks: list[bytes]) -> None:
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        for chunk in chunks:
            self._hash.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]
        if self._size - self._looked >= LOOK_BYTES:
            self._looked = self._size
            self._spooler.check_room(0)

    def _end(self, chunks: list[bytes]) -> None:
        self._write(chunks)
        if self._sync:
            os.fsync(self._file)
        file, self._file = self._file, -1
        os.close(file)


def trouble(fault: BaseException) -> MeshError:
    """What an error of the file system means for whoever sent the bytes."""
    if isinstance(fault, OSError) and fault.errno in _FULL:
        return _full()
    why = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault) or type(fault).__name__
    return Unavailable(f"large payloads cannot be kept here: {why}", code="blob_storage_failed", retry_after_s=5)


def _busy() -> TooMany:
    return TooMany("as many large bodies as there is room for are on their way in here; try again", code="uploads_busy")


def _full() -> StorageFull:
    detail = "there is no room for this payload: the storage of large payloads is full; nothing of it was kept"
    return StorageFull(detail, retry_after_s=30)


def _remove(file: int, path: Path) -> None:
    if file >= 0:
        os.close(file)
    path.unlink(missing_ok=True)


def _nothing(*_: object) -> None:
    """Nobody watches."""
