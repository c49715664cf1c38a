"""`mesh.Blob`: an input or a result that need not fit into memory, as handlers and callers hold it.

Owns a file or a few bytes, their media type and digest, and when the file goes. Knows no operation and no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self, cast

from mesh.errors import Unavailable

OCTETS: Final = "application/octet-stream"
PIECE_BYTES: Final = 256 << 10
SCHEMA: Final = {"contentMediaType": OCTETS}
"""How a contract says that an input or a result is a Blob: as OpenAPI 3.1 has a body that is no JSON."""


def is_blob_schema(schema: object) -> bool:
    """Whether a JSON Schema says no more than that: a media type that is not JSON, and words for people."""
    if not isinstance(schema, dict):
        return False
    known = cast("dict[str, object]", schema)
    kind = known.get("contentMediaType")
    return isinstance(kind, str) and "json" not in kind and known.keys() <= {"contentMediaType", "title", "description"}


class Blob:
    """Bytes of any number, with a media type.

        Blob("report.pdf", content_type="application/pdf")   a file that stays yours
        Blob(data=b"...")                                    bytes in memory
        Blob.temporary()                                     a new file to write to, gone with the last reference

    As the type of a handler's input it takes any body, streamed to a temporary file; as its result it is streamed back.
    A file must not change until it was sent. What was received is deleted with the last reference to it; `save` it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        data: bytes | None = None,
        content_type: str | None = OCTETS,
        sha256: str | None = None,
    ) -> None:
        """`sha256` in hex, where it is known. Raises TypeError unless there is either a path or data."""
        if (path is None) == (data is None):
            message = "a Blob has a path, or data"
            raise TypeError(message)
        self.path = None if path is None else Path(path)
        """The file; None for bytes in memory."""
        self.content_type = content_type
        self._data = data
        self._sha256 = sha256
        self._finalizer: weakref.finalize[..., Self] | None = None

    @classmethod
    def temporary(cls, *, content_type: str | None = OCTETS, directory: str | os.PathLike[str] | None = None) -> Self:
        """An empty file, to be written by its `path` or by `writing()`."""
        descriptor, name = tempfile.mkstemp(prefix="mesh-", suffix=".blob", dir=directory)
        os.close(descriptor)
        return cls.owning(Path(name), content_type=content_type)

    @classmethod
    def owning(cls, path: Path, *, content_type: str | None, sha256: str | None = None) -> Self:
        """A file that is deleted with the last reference."""
        found = cls(path, content_type=content_type, sha256=sha256)
        found._finalizer = weakref.finalize(found, _unlink, str(path))
        return found

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else str(self.path)
        return f"<Blob {self.content_type} {where}>"

    @property
    def size(self) -> int:
        """Bytes, now."""
        return len(self._data or b"") if self.path is None else self.path.stat().st_size

    @property
    def sha256(self) -> str:
        """In hex; of a file that is read once for it."""
        if self._sha256 is None:
            found = hashlib.sha256()
            for piece in self:
                found.update(piece)
            self._sha256 = found.hexdigest()
        return self._sha256

    async def digest(self) -> str:
        """`sha256`, without holding up the event loop."""
        return self._sha256 or await asyncio.get_running_loop().run_in_executor(None, lambda: self.sha256)

    def open(self) -> BinaryIO:
        """For reading; of what is in memory a copy."""
        return io.BytesIO(self._data or b"") if self.path is None else self.path.open("rb")

    def writing(self) -> BinaryIO:
        """For writing, from the beginning; of a temporary one. Raises TypeError for bytes in memory."""
        if self.path is None:
            message = "a Blob in memory is not written to"
            raise TypeError(message)
        self._sha256 = None
        return self.path.open("wb")

    def read(self) -> bytes:
        """All of it, in memory."""
        return self._data or b"" if self.path is None else self.path.read_bytes()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file of yours, which is replaced. Raises OSError."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.part")
        try:
            if self.path is None:
                draft.write_bytes(self._data or b"")
            else:
                shutil.copyfile(self.path, draft)
            return draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    async def taken(self) -> Blob:
        """Itself, if it is temporary or in memory; of a file that is yours, and may change, a temporary copy."""
        if self.path is None or self._finalizer is not None:
            return self
        path, loop = self.path, asyncio.get_running_loop()
        copy = Blob.temporary(content_type=self.content_type)
        await loop.run_in_executor(None, shutil.copyfile, path, str(copy.path))
        return copy

    def close(self) -> None:
        """Delete a temporary file now. Others are left alone."""
        if self._finalizer is not None:
            self._finalizer()

    def __iter__(self) -> Iterator[bytes]:
        with self.open() as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it, in pieces. Raises Unavailable when the file cannot be read."""
        if self.path is None:
            if self._data:
                yield self._data
            return
        loop = asyncio.get_running_loop()
        try:
            with await loop.run_in_executor(None, self.open) as file:
                while piece := await loop.run_in_executor(None, file.read, PIECE_BYTES):
                    yield piece
        except OSError as fault:
            raise Unavailable(f"{self.path.name} cannot be read: {fault.strerror}", code="blob_unreadable") from None


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)
