"""Blobs as files below a directory: `{directory}/{last two letters of the owner}/{owner}/{sha256}`.

Several processes may share the directory, over a network file system too, when that keeps rename and fsync. What is
there under its name is complete and on the disk: the temporary file is synced, then renamed, then the directory synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from mesh.blobs.files import opened, pieces
from mesh.blobs.spool import SUFFIX, Spooled, trouble
from mesh.blobs.store import OWNERS_PAGE, missing
from mesh.errors import ConfigError
from mesh.ids import is_operation_id

PLACE: Final = "place"
"""File with the name of the place, by which gateways tell whether they have the same."""
PARTS: Final = "parts"
"""Directory of bodies on their way in, beside the blobs: renaming works within one file system only."""


class LocalBlobs:
    """A BlobStore in a directory."""

    place = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts = directory / PARTS

    async def check(self, candidate: str) -> str:
        return await _in_thread(self._check, candidate)

    async def close(self) -> None:
        """Nothing is held."""

    async def put(self, owner: str, spooled: Spooled) -> None:
        try:
            await _in_thread(self._put, owner, spooled.path, spooled.sha256)
        except OSError as fault:
            raise trouble(fault) from None
        spooled.hand_on()

    async def read(self, owner: str, sha256: str, start: int, count: int) -> AsyncIterator[bytes]:
        try:
            file = await opened(self._room(owner) / sha256)
        except FileNotFoundError:
            raise missing(owner) from None
        except OSError as fault:
            raise trouble(fault) from None
        return _pieces(file, start, count)

    async def size(self, owner: str, sha256: str) -> int | None:
        try:
            return (await _in_thread(os.stat, self._room(owner) / sha256)).st_size
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise trouble(fault) from None

    async def drop(self, owner: str) -> None:
        await _in_thread(shutil.rmtree, self._room(owner), True)  # noqa: FBT003 - ignore_errors

    async def drop_others(self, owner: str, kept: frozenset[str], before_ms: int) -> int:
        return await _in_thread(_drop_others, self._room(owner), kept, before_ms)

    async def owners(self, before_ms: int) -> AsyncIterator[list[tuple[str, int]]]:
        for shelf in await _in_thread(_directories, self.directory):
            if len(shelf.name) != 2:  # noqa: PLR2004 - the parts, or a stranger's
                continue
            found = await _in_thread(_older, shelf.path, before_ms)
            for at in range(0, len(found), OWNERS_PAGE):
                yield found[at : at + OWNERS_PAGE]

    async def sweep_parts(self, before_ms: int) -> int:
        return await _in_thread(sweep_parts, self.parts, before_ms)

    # -- inside, in threads

    def _room(self, owner: str) -> Path:
        return self.directory / owner[-2:] / owner

    def _check(self, candidate: str) -> str:
        name = self.directory / PLACE
        try:
            self.parts.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.parts / f".probe-{os.getpid()}"
            probe.write_text(candidate)
            with contextlib.suppress(FileExistsError):
                os.link(probe, name)  # of two gateways that begin at once, one names it
            probe.unlink()
            return name.read_text()
        except OSError as fault:
            detail = f"large payloads cannot be kept in {self.directory}: {fault.strerror}; name another [blobs] url"
            raise ConfigError(detail) from None

    def _put(self, owner: str, path: Path, sha256: str) -> None:
        room = self._room(owner)
        shelf = room.parent
        fresh = [one for one in (shelf, room) if not one.is_dir()]
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            path.rename(room / sha256)
        except OSError:
            with contextlib.suppress(OSError):
                room.rmdir()  # only if it is empty
            raise
        _sync(room)
        for one in reversed(fresh):
            _sync(one.parent)


async def _pieces(file: Any, start: int, count: int) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces(file, start, count):
            yield piece
    except EOFError:
        return  # shorter than it was: whoever counts will notice
    except OSError as fault:
        raise trouble(fault) from None


async def _in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directories(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return [one for one in found if one.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _older(shelf: str, before_ms: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for one in _directories(shelf):
        with contextlib.suppress(OSError):
            # Of the directory: it moves with every blob that comes.
            newest_ms = int(one.stat().st_mtime * 1000)
            if is_operation_id(one.name) and newest_ms < before_ms:
                found.append((one.name, newest_ms))
    return found


def _drop_others(room: Path, kept: frozenset[str], before_ms: int) -> int:
    dropped = 0
    with contextlib.suppress(OSError):
        for one in room.iterdir():
            with contextlib.suppress(OSError):
                if one.name not in kept and one.stat().st_mtime * 1000 < before_ms:
                    one.unlink()
                    dropped += 1
    return dropped


def sweep_parts(parts: Path, before_ms: int) -> int:
    """Delete what uploads left in a directory that was last written to before a time; how many. Blocks."""
    swept = 0
    with contextlib.suppress(OSError):
        for one in parts.iterdir():
            with contextlib.suppress(OSError):
                if one.name.endswith(SUFFIX) and one.stat().st_mtime * 1000 < before_ms:
                    one.unlink()
                    swept += 1
    return swept
