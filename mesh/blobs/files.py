"""Reading files piece by piece in a thread. Knows no blobs: a path, where to begin, how much."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

PIECE_BYTES: Final = 256 << 10


async def pieces(file: BinaryIO, start: int, count: int) -> AsyncIterator[bytes]:
    """`count` bytes of an open file from `start` on; then it is closed. Raises OSError, EOFError when it is short."""
    loop = asyncio.get_running_loop()
    descriptor, at, end = file.fileno(), start, start + count
    try:
        while at < end:
            piece = await loop.run_in_executor(None, os.pread, descriptor, min(PIECE_BYTES, end - at), at)
            if not piece:
                raise EOFError
            at += len(piece)
            yield piece
    finally:
        file.close()


async def opened(path: Path) -> BinaryIO:
    """The file, open for reading. Raises OSError."""
    return await asyncio.get_running_loop().run_in_executor(None, _open, path)


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)
